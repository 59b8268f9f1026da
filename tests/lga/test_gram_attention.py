"""LGA's channel attention by Gram matrices against convolutions, q, k and v in float64, and its traffic."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import DEVICE, FAST, FORMATS, INTERPRETED, assert_close, named

pytest.importorskip("triton")

from benchmarks.traffic import count
from fastattn.kernels.lga import gram_attention

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(FAST != "triton", reason="runs kernels: TRITON_INTERPRET=1, or a GPU"),
]

LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3}  # of the relative error
CASES = {
    "heads divisible by three": {"heads": 3},
    "two heads": {"heads": 2},
    "four heads": {"heads": 4, "kernels": 1},
    "eight heads": {"heads": 8, "kernels": 1},
    "one head": {"heads": 1},
    "one channel": {"heads": 1, "head": 1},
    "a head per channel": {"heads": 4, "head": 1, "kernels": 1},
    "head size not a power of two": {"heads": 2, "head": 5},
    "head size of a whole tile": {"heads": 2, "head": 16},
    "head size above a tile": {"heads": 2, "head": 17, "kernels": 1},
    "head size 32": {"heads": 2, "head": 32, "kernels": 1},
    "head size 40, padded to 64": {"heads": 1, "head": 40},
    "two samples": {"batch": 2},
    "five samples": {"batch": 5, "heads": 1, "kernels": 1},
    "one kernel size": {"kernels": 1},
    "four kernel sizes": {"kernels": 4, "heads": 1},
    "eight kernel sizes": {"kernels": 8, "heads": 1},
    "one row": {"size": (1, 13)},
    "pixels in several blocks": {"size": (11, 15), "heads": 1},
    "a whole block of pixels": {"size": (8, 8), "heads": 1},
    "1x1 map": {"size": (1, 1)},
}


def make(
    *, heads=2, head=4, size=(5, 7), batch=1, kernels=2, contraction="paper", memory_format=torch.contiguous_format,
    dtype=torch.float32, param_dtype=None, seed=0,
):  # fmt: skip
    """Return the arguments of forward, and the gradient of its output; the scores are moderate."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, device="cpu").to(DEVICE, dtype)

    def draw_map():
        return (draw(batch, dim, *size) + 0.5).contiguous(memory_format=memory_format)

    dim, small = heads * head, (size[0] * size[1]) ** -0.25
    param_dtype = param_dtype or dtype
    features = [draw_map() for _ in range(kernels)]
    weights = [draw(3 * dim, head, 1, 1, dtype=param_dtype) * head**-0.5 * small for _ in range(kernels)]
    biases = [draw(3 * dim, dtype=param_dtype) * small for _ in range(kernels)]
    shares = 0.5 + draw(kernels, dtype=torch.float32) * 0.2
    return (features, weights, biases, shares, draw_map(), heads, contraction), draw_map()


def run(arguments, grad):
    """Return what the kernels compute, by name."""
    features, weights, biases, shares, x, heads, contraction = arguments
    mixed, saved = gram_attention.forward(*arguments)
    grads, grad_params, grad_shares = gram_attention.backward(
        grad, features, weights, biases, shares, x, saved, heads, contraction
    )
    for tensor in (mixed, *grads):
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (x.shape, x.stride(), x.dtype)
    assert grad_params.dtype == weights[0].dtype
    assert saved.dtype == grad_shares.dtype == torch.float32
    head = x.shape[1] // heads
    assert saved.shape == gram_attention.saved_shape(len(x), len(features), heads, head, contraction)
    parts = grad_params.split([parameter.numel() for parameter in (*weights, *biases)])
    got = {"mixed": mixed, "shares": grad_shares} | {f"feature_{k}": part for k, part in enumerate(grads)}
    got |= {f"weight_{k}": part for k, part in enumerate(parts[: len(weights)])}
    got |= {f"bias_{k}": part for k, part in enumerate(parts[len(weights) :])}
    if contraction == "paper":
        got["attention"] = saved[..., :head, :]
    return got


def expect(arguments, grad, dtype=torch.float64):
    """Return the same of grouped convolutions and attention, in float64 or another dtype."""
    features, weights, biases, shares, x, heads, contraction = arguments

    def exact(tensors):
        return [tensor.detach().cpu().to(dtype).requires_grad_() for tensor in tensors]

    features, weights, biases, (shares, x) = map(exact, (features, weights, biases, (shares, x)))
    mixed, matrices = x * shares.sum(), []
    for feature, weight, bias, share in zip(features, weights, biases, shares, strict=True):
        qkv = F.conv2d(feature, weight, bias, groups=heads).chunk(3, dim=1)
        q, k, v = (t.unflatten(1, (heads, -1)).flatten(3) for t in qkv)
        attention = (q @ k.mT * q.shape[2] ** -0.5).softmax(dim=3)
        matrices.append(attention.detach())
        if contraction == "released":
            attention = torch.ones_like(attention) + 0 * attention  # zeros for q and k
        mixed = mixed + share * (attention @ v).reshape(x.shape)
    expected = {"mixed": mixed, "attention": torch.stack(matrices, 1)}
    inputs = {"shares": shares} | {f"feature_{k}": feature for k, feature in enumerate(features)}
    inputs |= {f"weight_{k}": weight for k, weight in enumerate(weights)}
    inputs |= {f"bias_{k}": bias for k, bias in enumerate(biases)}
    grads = torch.autograd.grad(mixed, list(inputs.values()), grad.cpu().to(dtype))
    return expected | dict(zip(inputs, grads, strict=True))


def check(limit=LIMITS[torch.float32], **options):
    arguments, grad = make(**options)
    got, expected = run(arguments, grad), expect(arguments, grad)
    got = {name: tensor.reshape(expected[name].shape) for name, tensor in got.items()}
    assert_close(got, expected, limit)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case):
    check(**CASES[case])


@pytest.mark.skipif(not INTERPRETED, reason="of the algebra, not of what tensor cores lose")
def test_as_exact_as_with_queries_and_keys():
    """In the mean of several draws: the error of a share's gradient, a single number, is luck in each."""
    errors = {}
    for seed in range(8):
        arguments, grad = make(heads=3, kernels=1, seed=seed)
        got, eager, expected = run(arguments, grad), expect(arguments, grad, torch.float32), expect(arguments, grad)
        for name, tensor in got.items():
            exact = expected[name].detach()
            parts = tensor.cpu().reshape(exact.shape), eager[name].detach()
            squares = torch.stack([(part - exact).square().sum() / exact.square().sum() for part in parts])
            errors[name] = errors.get(name, 0) + squares
    ratios = {name: float((ours / theirs).sqrt()) for name, (ours, theirs) in errors.items()}
    assert all(ratio <= 2 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("case", ["two samples", "one head", "head size not a power of two", "1x1 map"])
def test_channels_last(case):
    check(**CASES[case], memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_released_contraction(heads, memory_format):
    check(heads=heads, batch=2, kernels=1, contraction="released", memory_format=memory_format)


@pytest.mark.parametrize("param_dtype", LIMITS, ids=named)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_half_precision(memory_format, param_dtype):
    check(LIMITS[torch.float16], dtype=torch.float16, param_dtype=param_dtype, memory_format=memory_format)


def test_no_gradient_of_queries_and_keys_of_one_channel():
    """A softmax over one score is one, and exactly so."""
    got = run(*make(heads=4, head=1, kernels=1))
    assert not got["weight_0"][:8].any()
    assert not got["bias_0"][:8].any()
    assert got["weight_0"][8:].all()


@pytest.mark.parametrize("contraction", ["paper", "released"])
def test_the_same_bits_twice(contraction):
    first, second = (run(*make(batch=2, contraction=contraction)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(not INTERPRETED, reason="counts what the interpreter does")
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_what_is_read_and_written(memory_format, monkeypatch):
    """Of maps, in times x: what the heads of a program need, and never q, k or v."""
    monkeypatch.setattr(gram_attention, "processors", lambda device: 1)
    gram_attention.plan.cache_clear()
    arguments, grad = make(heads=3, size=(16, 16), batch=1, memory_format=memory_format)
    x = arguments[4]
    with count() as records:
        run(arguments, grad)
    gram_attention.plan.cache_clear()
    found = {}
    for record in records:
        for kind, sizes in (("read", record.read), ("written", record.written)):
            for name, size in sizes.items():
                key = record.kernel, kind, name.rstrip("_01234567")
                if key[2] in ("features", "x", "mixed", "grad_mixed", "grads"):
                    found[key] = found.get(key, 0) + size / x.nbytes
    assert found == pytest.approx({
        ("gram_attention_kernel", "read", "features"): 4,  # the slices for q and for k, once for each head
        ("gram_mix_kernel", "read", "features"): 2 / 3,  # those for v
        ("gram_mix_kernel", "read", "x"): 1,
        ("gram_mix_kernel", "written", "mixed"): 1,
        ("gram_attention_backward_kernel", "read", "features"): 2,  # the slices for v, once for each head
        ("gram_attention_backward_kernel", "read", "grad_mixed"): 2,
        ("gram_attention_backward_kernel", "read", "x"): 1,
        ("gram_mix_backward_kernel", "read", "features"): 4 / 3,
        ("gram_mix_backward_kernel", "read", "grad_mixed"): 2,
        ("gram_mix_backward_kernel", "written", "grads"): 2,
    })  # fmt: skip
