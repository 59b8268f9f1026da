"""Fixtures: uninitialised memory is NaN, the backend choice is restored, the extension is there or not."""

import os
from contextlib import nullcontext
from importlib.metadata import version

import pytest

# Inductor's cache on disk does not know the operators' fakes: a graph of an earlier state would be found there
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch

import fastattn
from benchmarks import interpreter
from fastattn.core import native as loader
from tests import helpers
from tests.helpers import DEVICE, FAST, INTERPRETED, THREADS
from tests.summary import pytest_terminal_summary  # noqa: F401 (a hook)


def pytest_configure(config):
    helpers.FULL = config.getoption("full")
    numpy = tuple(map(int, version("numpy").split(".")[:2])) if INTERPRETED else ()
    if numpy >= (2, 4) and version("triton").startswith("3.6."):
        pytest.exit("the interpreter of Triton 3.6 needs NumPy older than 2.4: pip install 'numpy<2.4'", 2)


def pytest_report_header(config):
    kept = "" if config.getoption("full") else "without those marked full (--full takes them too)"
    return f"tests: {'those marked triton, interpreted, ' if INTERPRETED else ''}{kept or 'all'}"


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked full, without --full, and what is not marked triton, under Triton's interpreter."""

    def chosen(item):
        if INTERPRETED and not item.get_closest_marker("triton"):
            return False
        return config.getoption("full") or not item.get_closest_marker("full")

    if any("::" in argument for argument in config.args):  # who names a test gets it
        return
    config.hook.pytest_deselected(items=[item for item in items if not chosen(item)])
    items[:] = filter(chosen, items)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what torch.empty and its kin return with NaN, so that an element that is not written shows."""
    torch.use_deterministic_algorithms(True)  # with torch.utils.deterministic.fill_uninitialized_memory, its default
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_start(request):
    """Start every test on as many threads as asked for and on the device; undo set_backend."""
    threads, backend = torch.get_num_threads(), fastattn.get_backend()
    torch.set_num_threads(THREADS)
    if DEVICE != "cpu" and not request.node.get_closest_marker("cpu"):
        torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)
    torch.set_num_threads(threads)
    fastattn.set_backend(backend)


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """Halve the time of interpreted kernels; a full run alone looks whether an integer overflows."""
    if not INTERPRETED:
        yield
        return
    with interpreter.quick(), interpreter.bfloat16(), nullcontext() if helpers.FULL else interpreter.unchecked():
        yield


@pytest.fixture
def few_programs(monkeypatch):
    """Plan for few programs where LGA's kernels are interpreted: an operation takes its time whatever its size.

    The sums over pixels keep the blocks that they have on a GPU, and so their errors. That no integer overflows is left
    to the kernels' own tests, where checking it takes a third of the time.
    """
    if not INTERPRETED:
        yield
        return
    from fastattn.kernels.common import depthwise, tiles
    from fastattn.kernels.lga import gram_attention, scale_mix

    plans = (
        *(depthwise.forward_plan, depthwise.backward_plan),
        *(scale_mix.forward_plan, scale_mix.backward_plan, gram_attention.plan),
    )
    many = 1 << 14
    for module, name in ((depthwise, "PLACES"), (depthwise, "THREADS"), (tiles, "SEGMENT"), (tiles, "TILE")):
        monkeypatch.setattr(module, name, many)
    monkeypatch.setattr(scale_mix, "ROWS", 32)
    blocks = {narrow: {64: (*sizes[64][:3], 1024, *sizes[64][4:])} for narrow, sizes in gram_attention.BLOCKS.items()}
    monkeypatch.setattr(gram_attention, "BLOCKS", blocks)
    for module in (scale_mix, gram_attention):
        monkeypatch.setattr(module, "processors", lambda device: 1)
    for plan in plans:
        plan.cache_clear()
    with interpreter.unchecked():
        yield
    for plan in plans:
        plan.cache_clear()


@pytest.fixture
def native():
    """Return the extension's loader; skip without an extension, or fail under FASTATTN_REQUIRE_NATIVE=1."""
    state, detail = loader.status()
    if state != "ok":
        give_up = pytest.fail if os.environ.get("FASTATTN_REQUIRE_NATIVE") == "1" else pytest.skip
        give_up(f"fastattn._native: {state}: {detail}")
    return loader


@pytest.fixture
def isa(native, request):
    """Run a test on one instruction set, where this CPU has it."""
    extension = native.extension()
    if request.param not in extension.isa_levels():
        pytest.skip(f"this CPU has no {request.param}")
    before = extension.isa()
    extension.set_isa(request.param)
    yield request.param
    extension.set_isa(before)


@pytest.fixture
def fast(request):
    """Return the fast backend that the tests are about; skip where it is not there."""
    if FAST == "native":
        request.getfixturevalue("native")
    return FAST


@pytest.fixture(params=[FAST] if INTERPRETED else ["reference", FAST])
def backend(request):
    """Return the reference and the fast backend in turn, and follow it."""
    if request.param == FAST:
        request.getfixturevalue("fast")
    with fastattn.use_backend(request.param):
        yield request.param
