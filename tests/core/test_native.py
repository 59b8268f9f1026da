"""The memory of the compiled CPU paths."""

import gc
import itertools
import os
from pathlib import Path

import pytest
import torch

import fastattn
from tests.helpers import FORMATS, draw

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
def test_a_thousand_calls_do_not_grow():
    torch.set_num_threads(2)
    modules = fastattn.SCSA(32), fastattn.LocalGlobalAttention(32, 8, (3,), 5)
    inputs = [draw(2, 32, 20, 21, memory_format=memory_format).requires_grad_() for memory_format in FORMATS]

    def call(times):
        for _ in range(times):
            for x, module in itertools.product(inputs, modules):
                module(x).backward(torch.ones_like(x))
                x.grad = None
                module.zero_grad()
        gc.collect()
        return resident()

    before = call(100)
    assert call(500) - before < 2 << 20  # 2,000 calls of 100 kB and more each
