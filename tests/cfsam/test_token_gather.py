"""Token gather against flatten, cat, interpolate and layer_norm in float64, and its traffic."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import DEVICE, FAST, FORMATS, INTERPRETED, assert_close, few, named

pytest.importorskip("triton")

from benchmarks.traffic import count
from fastattn.kernels.cfsam import token_gather
from fastattn.kernels.common import tiles

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(FAST != "triton", reason="runs kernels: TRITON_INTERPRET=1, or a GPU"),
]

EPS = 1e-5
NHWC = torch.channels_last
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3}  # of the relative error
PYRAMID = ((7, 6), (4, 3), (2, 1), (1, 1))  # 57 tokens
SSD300 = tuple((side, side) for side in (38, 19, 10, 5, 3, 1))
# levels, each (height, width), (height, width, format) or (tokens,), and options
CASES = {
    "pyramid": (PYRAMID, {}),
    "pyramid, channels_last": (tuple((*level, NHWC) for level in PYRAMID), {}),
    "formats mixed with a token matrix": (((5, 4), (4, 3, NHWC), (5,), (2, 2), (3, 2, NHWC)), {}),
    "one level": (((7, 5),), {}),
    "one level, channels_last": (((7, 5, NHWC),), {}),
    "planes of a multiple of eight": (((8, 8), (4, 4), (2, 2)), {}),
    "one pixel": (((1, 1),), {}),
    "levels of one pixel": (((1, 1), (1, 1), (1, 1)), {}),
    "eight levels": (((4, 4), *[(3, 2)] * 3, *[(2, 1)] * 2, *[(1, 1)] * 2), {}),
    "nine levels": (((4, 4), *[(3, 2)] * 3, *[(2, 1)] * 2, *[(1, 1)] * 3), {}),
    "ten levels, the last of all kinds": (((4, 4), *[(2, 2)] * 6, (3, 2), (3, 2, NHWC), (3,)), {}),
    "channels not a power of two": (PYRAMID, {"channels": 13}),
    "one channel": (PYRAMID, {"channels": 1}),
    "more channels than a tile": (((2, 2), (1, 1)), {"channels": 200}),
    "resized by one": (PYRAMID, {"length": 58}),
    "resized for 4 parts, channels_last": (tuple((*level, NHWC) for level in PYRAMID), {"length": 60}),
    "resized for 7 parts, mixed formats": (((7, 6), (4, 3, NHWC), (2, 1), (1, 1)), {"length": 63}),
    "nine levels, resized": (((4, 4), *[(3, 2)] * 3, *[(2, 1)] * 2, *[(1, 1)] * 3), {"length": 44}),
    "three tokens to four": (((1, 2), (1, 1)), {"length": 4}),
    "one token to two": (((1, 1),), {"length": 2}),
    "almost doubled": (((5, 4), (1, 1)), {"length": 41}),
    "halved": (((44,),), {"length": 22}),
    "added and normalised": (((57,),), {"add": True}),
    "added and restored": (((60,),), {"add": True, "length": 57, "norm": False}),
    "added, restored and normalised": (((63,),), {"add": True, "length": 57}),
    "four thousand tokens restored": (((4004,),), {"length": 4001, "norm": False, "channels": 1, "batch": 1}),
    "concatenated alone": (PYRAMID, {"norm": False}),
    "only the normalised tokens are used": (PYRAMID, {"grad_tokens": False}),
    "only the normalised tokens are used, resized": (PYRAMID, {"grad_tokens": False, "length": 60}),
}


@pytest.fixture
def fresh_plans():
    """Make plans anew in a test and after it."""
    token_gather.forward_plan.cache_clear()
    token_gather.backward_plan.cache_clear()
    yield
    token_gather.forward_plan.cache_clear()
    token_gather.backward_plan.cache_clear()


@pytest.fixture
def many_blocks(monkeypatch, fresh_plans):
    """Cut small inputs into many blocks, of which each of few programs takes several."""
    monkeypatch.setattr(tiles, "TILE", 128)
    monkeypatch.setattr(token_gather, "processors", lambda device: 1)


def draw(generator, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=generator, device="cpu").to(DEVICE, dtype)


def make(
    levels, *, batch=2, channels=8, length=None, add=False, norm=True, grad_tokens=True,
    dtype=torch.float32, param_dtype=None,
):  # fmt: skip
    """Return the arguments of forward and the gradients of what it returns."""
    generator = torch.Generator("cpu").manual_seed(0)
    sources = []
    for size, *rest in levels:
        if not rest:
            sources.append(draw(generator, batch, size, channels, dtype=dtype))
        else:
            x = draw(generator, batch, channels, size, rest[0], dtype=dtype) + 0.5
            sources.append(x.contiguous(memory_format=rest[1] if len(rest) > 1 else torch.contiguous_format))
    tokens = sum(size * (rest[0] if rest else 1) for size, *rest in levels)
    addend = draw(generator, batch, tokens, channels, dtype=dtype) if add else None
    weight, bias = (draw(generator, channels, dtype=param_dtype or dtype) if norm else None for _ in range(2))
    length = length or tokens
    used = (grad_tokens, norm)
    gradients = [draw(generator, batch, length, channels, dtype=dtype) if wanted else None for wanted in used]
    return (sources, addend, weight, bias, length), gradients


def run(arguments, gradients, need_params=True):
    """Return what the kernels compute, by name."""
    sources, _, weight, *_ = arguments
    tokens, normed, statistics = token_gather.forward(*arguments, EPS)
    need_params = need_params and weight is not None
    grads = [torch.empty_like(source) for source in sources]
    kept = (tokens, statistics, weight) if weight is not None else (None, None, None)
    grad_params = token_gather.backward(*gradients, *kept, grads, need_params)
    got = {"tokens": tokens} | {f"grad_{i}": grad for i, grad in enumerate(grads)}
    if weight is not None:
        got |= {"normed": normed, "mean": statistics[..., 0], "scale": statistics[..., 1]}
        assert statistics.dtype == torch.float32
    if need_params:
        got["grad_weight"], got["grad_bias"] = grad_params.chunk(2)
        assert grad_params.dtype == weight.dtype
    else:
        assert grad_params.numel() == 0
    return got


def expect(arguments, gradients):
    """Return the same of the operations one after another, in float64."""
    sources, addend, weight, bias, length = arguments
    sources = [source.double().cpu().requires_grad_() for source in sources]
    tokens = torch.cat([source.flatten(2).mT if source.dim() == 4 else source for source in sources], 1)
    if addend is not None:
        tokens = tokens + addend.double().cpu()
    if length != tokens.shape[1]:
        tokens = F.interpolate(tokens.mT, size=length, mode="linear", align_corners=False).mT
    outputs, inputs, statistics = {"tokens": tokens}, {f"grad_{i}": source for i, source in enumerate(sources)}, {}
    if weight is not None:
        inputs["grad_weight"], inputs["grad_bias"] = (p.double().cpu().requires_grad_() for p in (weight, bias))
        outputs["normed"] = F.layer_norm(tokens, tokens.shape[-1:], inputs["grad_weight"], inputs["grad_bias"], EPS)
        variance, mean = torch.var_mean(tokens, -1, correction=0)
        statistics = {"mean": mean, "scale": (variance + EPS).rsqrt()}
    pairs = zip(outputs.values(), gradients[: len(outputs)], strict=True)
    used = [(out, grad.double().cpu()) for out, grad in pairs if grad is not None]
    grads = torch.autograd.grad([out for out, _ in used], list(inputs.values()), [grad for _, grad in used])
    return outputs | statistics | dict(zip(inputs, grads, strict=True))


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case):
    levels, options = CASES[case]
    arguments, gradients = make(levels, **options)
    got = run(arguments, gradients)
    assert_close(got, expect(arguments, gradients), LIMITS[torch.float32])


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("param_dtype", LIMITS, ids=named)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_half_precision(memory_format, param_dtype):
    levels = tuple((*level, memory_format) for level in PYRAMID)
    for length in (57, 60):
        arguments, gradients = make(levels, length=length, dtype=torch.float16, param_dtype=param_dtype)
        assert_close(run(arguments, gradients), expect(arguments, gradients), LIMITS[torch.float16])


def test_small_inputs_in_one_block():
    arguments, gradients = make(PYRAMID, length=58)
    assert_close(run(arguments, gradients), expect(arguments, gradients), LIMITS[torch.float32])


@pytest.mark.usefixtures("many_blocks")
def test_no_parameter_gradients_needed():
    arguments, gradients = make(PYRAMID)
    got = run(arguments, gradients, need_params=False)
    assert_close(got, expect(arguments, gradients), LIMITS[torch.float32])


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("length", [57, 60], ids=["as long", "resized"])
def test_a_mean_far_above_the_deviation(length):
    """The deviation is taken from the mean: the rounding of the tokens alone is amplified."""
    arguments, gradients = make(PYRAMID, length=length)
    for source in arguments[0]:
        source += 1000
    assert_close(run(arguments, gradients), expect(arguments, gradients), 1e-3)


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("case", ["pyramid", "resized by one"])
def test_the_same_bits_twice(case):
    levels, options = CASES[case]
    first, second = (run(*make(levels, **options)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("fresh_plans")
@pytest.mark.skipif(not INTERPRETED, reason="counts what the interpreter does")
@pytest.mark.parametrize("length", few([1946, 1940]), ids=lambda length: f"of {length}")
@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
def test_each_byte_moves_once(memory_format, length):
    """One launch each way; the backward pass may add its rows of parameter gradients."""
    levels = tuple((*level, memory_format) for level in SSD300)
    (sources, *rest), gradients = make(levels, batch=1, channels=256, length=length)
    with count() as forward:
        tokens, normed, statistics = token_gather.forward(sources, *rest, EPS)
    with count() as backward:
        token_gather.backward(*gradients, tokens, statistics, rest[1], list(map(torch.empty_like, sources)), True)
    assert [record.kernel for record in forward] == ["token_gather_kernel"]
    assert [record.kernel for record in backward] == ["token_gather_backward_kernel", "batch_sum_kernel"]
    size = sum(tensor.nbytes for tensor in (*sources, tokens, normed))
    ratios = sum(record.bytes for record in forward) / size, sum(r.bytes for r in backward) / (size + tokens.nbytes)
    assert ratios[0] <= 1.1
    assert ratios[1] <= 1.2
