"""Depthwise convolutions against conv2d in float64, and their traffic."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import DEVICE, FAST, FORMATS, INTERPRETED, assert_close, by_turns, named

pytest.importorskip("triton")

from benchmarks.traffic import count
from fastattn.kernels.common import depthwise

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(FAST != "triton", reason="runs kernels: TRITON_INTERPRET=1, or a GPU"),
]

NCHW, NHWC = FORMATS
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3}  # of the relative error
ATTENTION = ((3, 1), (5, 1), (7, 1), (11, 1))  # size of the kernel, stride
SCALES = ((3, 1), (3, 2), (3, 4))
# shape, convolutions
CASES = {
    "default kernels": ((1, 4, 7, 6), ATTENTION),
    "largest kernel first, several blocks": ((1, 1, 9, 40), ((7, 1), (3, 1))),
    "scales, whole strides": ((2, 4, 8, 12), SCALES),
    "scales, odd height and width": ((1, 2, 19, 23), SCALES),
    "scales, one column": ((2, 4, 5, 1), SCALES),
    "scales, one pixel": ((2, 4, 1, 1), SCALES),
    "scales, fewer pixels than the stride": ((2, 4, 3, 2), SCALES),
    "strides of more rows than a thread has": ((1, 3, 17, 18), ((3, 8), (1, 1), (3, 16))),
    "strides alone, kernels that differ": ((1, 3, 9, 10), ((5, 2), (3, 4), (7, 2))),
    "one kernel": ((2, 4, 9, 5), ((5, 1),)),
    "kernel of one pixel": ((2, 4, 5, 3), ((1, 1), (1, 2))),
    "kernel larger than the map": ((1, 4, 3, 2), ((9, 1), (3, 1))),
    "eight kernels": ((1, 2, 5, 6), ((3, 1), (1, 1), (5, 2), (3, 4), (3, 1), (5, 1), (1, 2), (3, 2))),
    "channels not a power of two": ((1, 13, 3, 6), ((3, 1), (5, 1))),
    "more channels than a block": ((1, 40, 4, 4), ((3, 1), (3, 2))),
    "one channel": ((2, 1, 5, 6), ((3, 1), (5, 1))),
}


@pytest.fixture
def fresh_plans():
    """Make plans anew in a test and after it."""
    depthwise.forward_plan.cache_clear()
    depthwise.backward_plan.cache_clear()
    yield
    depthwise.forward_plan.cache_clear()
    depthwise.backward_plan.cache_clear()


@pytest.fixture
def few_processors(monkeypatch, fresh_plans):
    """Give each program several blocks."""
    monkeypatch.setattr(depthwise, "processors", lambda device: 1)


def draw(generator, *shape, dtype):
    return torch.randn(shape, generator=generator, device="cpu").to(DEVICE, dtype)


def make(shape, convolutions, memory_format=NCHW, dtype=torch.float32, param_dtype=None):
    """Return x, weights, biases, strides and the outputs' gradients."""
    generator = torch.Generator("cpu").manual_seed(0)
    batch, channels, height, width = shape
    x = draw(generator, *shape, dtype=dtype).contiguous(memory_format=memory_format)
    param_dtype = param_dtype or dtype
    weights = [draw(generator, channels, 1, size, size, dtype=param_dtype) for size, _ in convolutions]
    biases = [draw(generator, channels, dtype=param_dtype) for _ in convolutions]
    strides = [stride for _, stride in convolutions]
    grads = [
        draw(generator, batch, channels, -(-height // s), -(-width // s), dtype=dtype).contiguous(
            memory_format=memory_format
        )
        for s in strides
    ]
    return x, weights, biases, strides, grads


def run(x, weights, biases, strides, grads, need_x=True, need_params=True):
    """Return what the kernels compute, by name."""
    outs = depthwise.forward(x, weights, biases, strides)
    grad_x, grad_params = depthwise.backward(grads, x, weights, strides, need_x, need_params)
    got = {f"y_{j}": out for j, out in enumerate(outs)}
    memory_format = NCHW if x.is_contiguous() else NHWC
    assert all(out.dtype == x.dtype and out.is_contiguous(memory_format=memory_format) for out in outs)
    if need_x:
        assert (grad_x.stride(), grad_x.dtype) == (x.stride(), x.dtype)
        got["grad_x"] = grad_x
    else:
        assert grad_x.numel() == 0
    if need_params:
        assert grad_params.dtype == weights[0].dtype
        parts = grad_params.split([parameter.numel() for parameter in (*weights, *biases)])
        got |= {f"grad_{j}": part for j, part in enumerate(parts)}
    else:
        assert grad_params.numel() == 0
    return got


def expect(x, weights, biases, strides, grads):
    """Return the same of one convolution after another, in float64."""
    x, *params = (tensor.double().cpu().requires_grad_() for tensor in (x, *weights, *biases))
    outs = [
        F.conv2d(x, weight, bias, stride, weight.shape[2] // 2, groups=x.shape[1])
        for weight, bias, stride in zip(params[: len(strides)], params[len(strides) :], strides, strict=True)
    ]
    grad_x, *grad_params = torch.autograd.grad(outs, [x, *params], [grad.double().cpu() for grad in grads])
    expected = {f"y_{j}": out.detach() for j, out in enumerate(outs)} | {"grad_x": grad_x}
    return expected | {f"grad_{j}": grad.flatten() for j, grad in enumerate(grad_params)}


@pytest.mark.parametrize(("case", "memory_format"), by_turns(CASES), ids=named)
def test_outputs_and_gradients(case, memory_format):
    arguments = make(*CASES[case], memory_format)
    assert_close(run(*arguments), expect(*arguments), LIMITS[torch.float32])


@pytest.mark.usefixtures("few_processors")
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_several_blocks_and_samples_in_one_program(memory_format):
    arguments = make((2, 2, 8, 40), ((3, 1), (3, 2)), memory_format)
    assert_close(run(*arguments), expect(*arguments), LIMITS[torch.float32])


def test_kernel_of_31():
    arguments = make((1, 1, 3, 4), ((31, 1),))
    assert_close(run(*arguments), expect(*arguments), LIMITS[torch.float32])


@pytest.mark.parametrize("param_dtype", LIMITS, ids=named)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_half_precision(memory_format, param_dtype):
    arguments = make((1, 8, 7, 6), ((5, 1), (3, 2)), memory_format, torch.float16, param_dtype)
    assert_close(run(*arguments), expect(*arguments), LIMITS[torch.float16])


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)], ids=["x", "parameters", "none"])
def test_only_the_gradients_that_are_needed(need):
    arguments = make((2, 4, 5, 6), SCALES)
    assert_close(run(*arguments, *need), expect(*arguments), LIMITS[torch.float32])


def test_same_bits_twice():
    arguments = make((2, 4, 5, 6), ((3, 1), (3, 2)))
    first, second = run(*arguments), run(*arguments)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_x_that_is_not_aligned():
    x, *rest = make((2, 4, 5, 6), SCALES)
    storage = x.new_empty(x.numel() + 1)
    aside = storage[1:].view(x.shape).copy_(x)
    assert aside.data_ptr() % 16
    assert_close(run(aside, *rest), expect(x, *rest), LIMITS[torch.float32])


@pytest.mark.skipif(not INTERPRETED, reason="counts under TRITON_INTERPRET=1")
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("case", ["attention", "scales"])
def test_traffic(case, memory_format, monkeypatch, fresh_plans):
    """As at batch 32 on a GPU that is larger by as much."""
    monkeypatch.setattr(depthwise, "processors", lambda device: 4)
    channels, height, width, convolutions = (2, 20, 20, ATTENTION) if case == "attention" else (2, 40, 80, SCALES)
    arguments = make((1, channels, height, width), convolutions, memory_format)
    x, grads = arguments[0], arguments[-1]
    with count() as records:
        depthwise.forward(*arguments[:-1])
    (record,) = records
    ideal = (x.numel() + sum(grad.numel() for grad in grads)) * x.element_size()
    assert record.read["x"] + sum(record.written.values()) <= 1.35 * ideal
    assert sum(record.written.values()) == ideal - x.numel() * x.element_size()
