"""Launches that overlap: which kernels wait for the launch ahead, and which launches ask for it."""

import importlib
import pkgutil

import pytest
import torch

pytest.importorskip("triton")

import fastattn.kernels
from fastattn.kernels.common import chain

pytestmark = pytest.mark.triton


def kernels():
    """Every kernel of the package, by its name."""
    names = [module.name for module in pkgutil.walk_packages(fastattn.kernels.__path__, "fastattn.kernels.")]
    parts = [vars(importlib.import_module(name)) for name in names]
    return {name: value for part in parts for name, value in part.items() if name.endswith("_kernel")}


def test_every_kernel_waits():
    found = kernels()
    assert len(found) > 30
    assert not [name for name, kernel in found.items() if not chain.waits(kernel.fn)]


def waiting():
    chain.begin()


def idle():
    pass


@pytest.mark.parametrize(
    ("function", "wanted", "device", "capability", "expected"),
    [
        (waiting, True, "cuda", (9, 0), True),
        (waiting, True, "cuda", (12, 0), True),
        pytest.param(waiting, True, "cuda", (8, 9), False, id="an older GPU"),
        pytest.param(waiting, True, "cpu", (9, 0), False, id="the interpreter"),
        pytest.param(waiting, False, "cuda", (9, 0), False, id="switched off"),
        pytest.param(idle, True, "cuda", (9, 0), False, id="a kernel that waits for nothing"),
    ],
)
def test_which_launches_overlap(function, wanted, device, capability, expected, monkeypatch):
    class Kernel:
        fn = staticmethod(function)

    monkeypatch.setattr(chain, "OVERLAP", wanted)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert chain.overlaps(Kernel, torch.device(device)) == expected
