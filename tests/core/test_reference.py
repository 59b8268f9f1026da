"""What the references of several families share."""

import platform

import pytest
import torch

from fastattn.bench.accuracy import relative_error
from fastattn.core import reference
from fastattn.core.reference import depthwise
from tests.helpers import FORMATS, draw, named

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("size", [14, 15])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("pads", [False, True], ids=["", "as on ARM"])
def test_depthwise_gradients(pads, kernel, stride, size, memory_format, monkeypatch):
    if pads or platform.machine() != "aarch64":
        monkeypatch.setattr(reference, "_PADS_BEFORE", pads)
    x, weight, bias = draw(2, 24, size, size, memory_format=memory_format), draw(24, 1, kernel, kernel), draw(24, 1, 1)
    tensors = [t.requires_grad_() for t in (x, weight, bias.flatten())]

    def run(x, weight, bias):
        out = depthwise(x, (weight, bias), stride)
        return out, *torch.autograd.grad(out, [x, weight, bias], draw(*out.shape).to(out))

    exact = run(*(t.detach().double().requires_grad_() for t in tensors))
    for name, found, expected in zip(("out", "grad_x", "weight", "bias"), run(*tensors), exact, strict=True):
        error = relative_error(found.detach(), expected.detach())
        assert error < 1e-6, f"{name}: {error:.1e}"
    assert exact[0].shape[2:] == (-(-size // stride),) * 2
