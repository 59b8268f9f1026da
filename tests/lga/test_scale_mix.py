"""LGA's scale features against their composition in float64, and their traffic."""

import pytest
import torch
import torch.nn.functional as F

from fastattn.lga.reference import resize_nearest
from tests.helpers import DEVICE, FAST, FORMATS, INTERPRETED, assert_close, by_turns, named

pytest.importorskip("triton")

from benchmarks.traffic import count
from fastattn.kernels.common import tiles
from fastattn.kernels.lga import scale_mix

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(FAST != "triton", reason="runs kernels: TRITON_INTERPRET=1, or a GPU"),
]

LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3}  # of the relative error
# height, width, options
CASES = {
    "three scales": (8, 8, {}),
    "two scales": (8, 8, {"scales": 2}),
    "one scale": (8, 8, {"scales": 1}),
    "seven scales, the last of one pixel": (9, 10, {"scales": 7, "batch": 1}),
    "odd map, ranges of unequal size": (19, 23, {"channels": 4, "batch": 1}),
    "one pixel": (1, 1, {}),
    "fewer pixels than the coarsest map halves": (5, 3, {}),
    "one row": (1, 21, {}),
    "encoding of the map's size": (6, 7, {"encoding": (6, 7)}),
    "encoding smaller than the map": (10, 9, {"encoding": (1, 2)}),
    "encoding larger than the map": (5, 6, {"encoding": (11, 8)}),
    "encoding lower and wider than the map": (7, 5, {"encoding": (3, 9)}),
    "channels not a power of two": (6, 7, {"channels": 13}),
    "one channel": (6, 7, {"channels": 1}),
    "more channels than a block": (6, 7, {"channels": 24}),
    "a batch in parts": (4, 4, {"batch": 5}),
}


@pytest.fixture
def fresh_plans():
    """Make plans anew in a test and after it."""
    scale_mix.forward_plan.cache_clear()
    scale_mix.backward_plan.cache_clear()
    yield
    scale_mix.forward_plan.cache_clear()
    scale_mix.backward_plan.cache_clear()


@pytest.fixture
def many_blocks(monkeypatch, fresh_plans):
    """Cut the channels of small inputs into several blocks."""
    monkeypatch.setattr(tiles, "TILE", 512)


def make(
    height, width, *, scales=3, channels=8, batch=2, encoding=(5, 4), memory_format=torch.contiguous_format,
    dtype=torch.float32, param_dtype=None,
):  # fmt: skip
    """Return the arguments of forward and the gradient of z."""
    generator = torch.Generator("cpu").manual_seed(0)
    param_dtype = param_dtype or dtype

    def draw(*shape, dtype, layout=torch.contiguous_format):
        values = torch.randn(shape, generator=generator, device="cpu")
        return values.to(DEVICE, dtype).contiguous(memory_format=layout)

    sides = [(-(-height // 2**i), -(-width // 2**i)) for i in range(scales)]
    x, grad_z, *coarse = (
        draw(batch, channels, *side, dtype=dtype, layout=memory_format) for side in [(height, width)] * 2 + sides
    )
    weight = draw(scales + 1, channels, 1, 1, dtype=param_dtype) / channels**0.5
    bias = draw(scales + 1, dtype=param_dtype)
    position_encoding = draw(1, channels, *encoding, dtype=param_dtype)
    return (x, coarse, weight, bias, position_encoding), grad_z


def run(arguments, grad_z, need_params=True):
    """Return what the kernels compute, by name."""
    x, coarse, weight, bias, position_encoding = arguments
    z, shares = scale_mix.forward(*arguments)
    grad_x, grad_coarse, grad_params = scale_mix.backward(
        grad_z, x, coarse, shares, weight, position_encoding, need_params
    )
    for tensor, like in zip((z, grad_x, *grad_coarse), (x, x, *coarse), strict=True):
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (like.shape, like.stride(), like.dtype)
    assert shares.dtype == torch.float32
    got = {"z": z, "shares": shares, "x": grad_x} | {f"u_{i + 1}": grad for i, grad in enumerate(grad_coarse)}
    parameters = (weight, bias, position_encoding) if need_params else ()
    parts = grad_params.split([parameter.numel() for parameter in parameters] or [0])
    assert grad_params.dtype == weight.dtype
    named_parts = zip(("weight", "bias", "encoding"), parts, parameters, strict=False)
    return got | {name: part.view_as(parameter) for name, part, parameter in named_parts}


def expect(arguments, grad_z):
    """Return the same of the operations one after another, in float64."""
    x, coarse, weight, bias, position_encoding = arguments
    inputs = {"x": x} | {f"u_{i + 1}": u for i, u in enumerate(coarse)}
    inputs |= {"weight": weight, "bias": bias, "encoding": position_encoding}
    inputs = {name: tensor.double().cpu().contiguous().requires_grad_() for name, tensor in inputs.items()}
    x, *coarse, weight, bias, position_encoding = inputs.values()
    size = x.shape[2:]
    shares = F.conv2d(x, weight, bias).softmax(dim=1)
    features = [x, *(resize_nearest(u, *size) + x for u in coarse)]
    z = sum(share * feature for share, feature in zip(shares.split(1, dim=1), features, strict=True))
    z = z + resize_nearest(position_encoding, *size)
    grads = torch.autograd.grad(z, list(inputs.values()), grad_z.double().cpu())
    return {"z": z, "shares": shares} | dict(zip(inputs, grads, strict=True))


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize(("case", "memory_format"), by_turns(CASES), ids=named)
def test_outputs_and_gradients(case, memory_format):
    height, width, options = CASES[case]
    inputs = make(height, width, memory_format=memory_format, **options)
    got, expected = run(*inputs), expect(*inputs)
    assert got.keys() == expected.keys()
    assert_close(got, expected, LIMITS[torch.float32])


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("param_dtype", LIMITS, ids=named)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_half_precision(memory_format, param_dtype):
    inputs = make(7, 10, memory_format=memory_format, dtype=torch.float16, param_dtype=param_dtype)
    assert_close(run(*inputs), expect(*inputs), LIMITS[torch.float16])


@pytest.mark.usefixtures("fresh_plans")
def test_all_channels_in_one_block():
    inputs = make(6, 7)
    assert_close(run(*inputs), expect(*inputs), LIMITS[torch.float32])


@pytest.mark.usefixtures("fresh_plans")
def test_parameter_gradients_not_needed():
    inputs = make(6, 7)
    got = run(*inputs, need_params=False)
    assert "weight" not in got
    assert_close(got, expect(*inputs), LIMITS[torch.float32])


@pytest.mark.usefixtures("many_blocks")
def test_the_same_bits_twice():
    first, second = (run(*make(7, 10)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("fresh_plans")
@pytest.mark.skipif(not INTERPRETED, reason="counts what the interpreter does")
@pytest.mark.parametrize("shape", [(64, 4, 80), (128, 20, 20)], ids=["rows of 80x80", "20x20"])
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_each_byte_of_maps_moves_once(memory_format, shape):
    """Forward in one launch; backward in one and another for the position encoding, which reads grad_z again."""
    channels, *size = shape
    encoding = (-(-14 * size[0] // size[1]), 14)
    (x, coarse, *parameters), grad_z = make(
        *size, channels=channels, batch=1, encoding=encoding, memory_format=memory_format
    )
    with count() as forward:
        _, shares = scale_mix.forward(x, coarse, *parameters)
    with count() as backward:
        scale_mix.backward(grad_z, x, coarse, shares, parameters[0], parameters[2], True)
    assert [record.kernel for record in forward] == ["scale_mix_kernel"]
    kernels = ["scale_mix_backward_kernel", "encoding_gradient_kernel", "batch_sum_kernel", "batch_sum_kernel"]
    assert [record.kernel for record in backward] == kernels
    maps = sum(tensor.nbytes for tensor in (x, *coarse))
    once = maps + x.nbytes + shares.nbytes
    assert forward[0].bytes <= 1.1 * (once + parameters[2].nbytes)
    assert backward[0].bytes <= 1.1 * (once + maps)
    assert backward[1].read == {"grad_z": grad_z.nbytes}
