"""Calls from several Python threads at once."""

import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import fastattn
from tests.helpers import draw

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]

THREADS = 8
MODULES = {
    "scsa": lambda: fastattn.SCSA(32),
    "lga": lambda: fastattn.LocalGlobalAttention(32, 8, (3,), 5),
    "acp": lambda: fastattn.AggressiveConvPooling(32),
}


def one(module, x):
    """Return the output and all gradients of one call."""
    x = x.clone().requires_grad_()
    out = module(x)
    return out, *torch.autograd.grad(out, [x, *module.parameters()], torch.ones_like(out), allow_unused=True)


@pytest.mark.parametrize("name", MODULES)
def test_eight_threads_agree_to_the_bit(name):
    module = MODULES[name]()
    x = draw(2, 32, 12, 11)
    expected = one(module, x)
    together = Barrier(THREADS)

    def calls(_):
        together.wait()
        return [one(module, x) for _ in range(5)]

    with ThreadPoolExecutor(THREADS) as pool:
        for results in pool.map(calls, range(THREADS)):
            for result in results:
                assert all(a is b is None or torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the GIL")
def test_the_extension_leaves_the_gil_off():
    assert not sys._is_gil_enabled()
