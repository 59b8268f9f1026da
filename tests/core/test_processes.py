"""Processes beside one another: forked ones, spawned ones, eight on two cores."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fastattn
from tests.helpers import DEVICE

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.usefixtures("native"),
    pytest.mark.skipif(DEVICE != "cpu", reason="of the CPU's path"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="forks, and looks into /proc"),
]
ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "scsa": lambda: (fastattn.SCSA(64), torch.randn(2, 64, 28, 28)),
    "lga": lambda: (fastattn.LocalGlobalAttention(16, 4), torch.randn(2, 16, 28, 28)),
    "acp": lambda: (fastattn.AggressiveConvPooling(32), torch.randn(2, 32, 28, 28)),
    "cat": lambda: (fastattn.ConceptualAttention(32), torch.randn(2, 196, 32)),
}


def step(name: str, threads: int = 2) -> torch.Tensor:
    """Return the gradient of x."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, x = MODULES[name]()
    x.requires_grad_()
    module(x).square().sum().backward()
    return x.grad


class Attended(Dataset):
    """Samples that an attention in a worker of the loader has gone over."""

    def __init__(self, name: str):
        self.name = name

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return step(self.name, torch.get_num_threads())


def check_loaders_workers():
    for name in MODULES:
        expected = step(name)
        loader = DataLoader(Attended(name), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
        for batch in loader:
            for found in batch:
                torch.testing.assert_close(found, expected, msg=name)


def attended(name: str, threads: int) -> tuple[list[float], list[float]]:
    """Return what a module makes of x and x's gradient, computed by fastattn alone."""
    torch.use_deterministic_algorithms(False)  # which fill memory, by operators of torch that may wait for a team
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, x = MODULES[name]()
    out = module(x.requires_grad_())
    (grad,) = torch.autograd.grad(out, x, torch.randn(out.shape))
    return out.tolist(), grad.tolist()


def check_child_that_asks_for_threads():
    """As many as the parent's team has."""
    for name in MODULES:
        expected = attended(name, 2)
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            found = pool.submit(attended, name, 2).result(60)
        for own, parents in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(own), torch.tensor(parents), msg=name)


@pytest.mark.parametrize("check", [check_loaders_workers, check_child_that_asks_for_threads], ids=lambda f: f.__name__)
def test_forked_children(check):
    """After a team of threads has run in the parent, which fork leaves behind, the child may not wait for it; in a
    process of its own, as torch refuses backward in the children of one that has autograd's threads."""
    code = f"from tests.core import test_processes; test_processes.{check.__name__}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def usage(rounds: int) -> tuple[int, int, int]:
    """Return the threads of this process after calls, and its memory in kB after some and after many of them."""
    status = Path("/proc/self/status")

    def read(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    torch.set_num_threads(2)
    torch.set_num_interop_threads(1)
    known = [make() for make in MODULES.values()]
    sizes = []
    for calls in (50, rounds):
        for _ in range(calls):
            for module, x in known:
                module(x[:1]).sum().backward()
        sizes.append(read("VmRSS"))
    return read("Threads"), *sizes


@pytest.mark.full
def test_eight_processes_of_two_threads():
    """None has more threads than it asked for, beside those of the pool that hands out the work; memory is flat."""
    with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
        found = [*pool.map(usage, [250] * 8)]
    assert max(threads for threads, _, _ in found) <= 2 + 2
    assert max(late - early for _, early, late in found) < 4096
