"""Fixtures: uninitialised memory is NaN, the backend choice is restored, the extension is there or not."""

import os

import pytest
import torch

import fastattn
from fastattn import native as loader


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what torch.empty and its kin return with NaN, so that an element that is not written shows."""
    torch.use_deterministic_algorithms(
        True
    )  # with torch.utils.deterministic.fill_uninitialized_memory, its default
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_start():
    """Start every test on one thread, which tiny tensors are fastest on, and undo set_backend."""
    threads, backend = torch.get_num_threads(), fastattn.get_backend()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    fastattn.set_backend(backend)


@pytest.fixture
def native():
    """Return the extension's loader; skip without an extension, or fail under FASTATTN_REQUIRE_NATIVE=1."""
    state, detail = loader.status()
    if state != "ok":
        give_up = pytest.fail if os.environ.get("FASTATTN_REQUIRE_NATIVE") == "1" else pytest.skip
        give_up(f"fastattn._native: {state}: {detail}")
    return loader


@pytest.fixture(params=["reference", "native"])
def backend(request):
    """Return each backend that this machine has, and follow it."""
    if request.param == "native":
        request.getfixturevalue("native")
    with fastattn.use_backend(request.param):
        yield request.param
