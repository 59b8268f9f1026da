"""ACP, CAT and both on tokens against a direct computation in float64 that goes pixel by pixel and sample by sample."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn import functional
from tests.helpers import DEVICE, DTYPES, FAST, FORMATS, assert_accurate, by_turns, draw, named, randomize, thin

pytestmark = pytest.mark.triton

NHWC = torch.channels_last
# (B, C, H, W, options)
ACP = {
    "default": (2, 4, 6, 8, {}),
    "odd height and width": (1, 5, 7, 5, {}),
    "one layer": (1, 3, 4, 5, {"num_layers": 1}),
    "three layers, the last of 2 x 1": (1, 3, 7, 4, {"num_layers": 3}),
    "one column": (1, 3, 5, 1, {}),
    "sum": (2, 3, 5, 6, {"aggregate": "sum"}),
    "windows of 3, overhanging": (1, 3, 7, 5, {"pool_size": 3}),
    "windows of 4, kernel of 5": (1, 2, 9, 6, {"pool_size": 4, "kernel_size": 5, "num_layers": 1}),
    "windows of one pixel, kernel of one": (1, 4, 3, 4, {"pool_size": 1, "kernel_size": 1}),
    "kernel larger than the map": (1, 3, 3, 2, {"kernel_size": 7, "num_layers": 1}),
    "channels beyond a block": (1, 18, 4, 3, {"num_layers": 1}),
    "larger": (2, 16, 9, 7, {}),
}
# (B, N, C, concepts)
CAT = {
    "default": (2, 20, 16, 7),
    "one token": (2, 1, 8, 3),
    "one concept": (1, 9, 8, 1),
    "tokens beyond a block": (1, 83, 24, 5),
    "concepts beyond a block": (1, 21, 16, 70),
    "channels beyond a block": (1, 18, 136, 5),
    "channels not a multiple": (2, 11, 19, 6),
    "one channel": (1, 6, 1, 2),
    "larger": (2, 70, 24, 9),
}
# (B, size, C, options)
BOTH = {
    "default": (1, (4, 5), 4, {"num_concepts": 5}),
    "a class token": (2, (3, 5), 6, {"num_concepts": 5, "num_prefix_tokens": 1}),
    "registers, sum": (1, (5, 4), 12, {"num_concepts": 3, "num_prefix_tokens": 5, "aggregate": "sum"}),
    "larger": (2, (6, 7), 24, {"num_concepts": 8, "num_prefix_tokens": 1}),
}


def scaled(module):
    """Give a module random parameters of the scale of its sums."""
    randomize(module)
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() > 1:
                p /= p[0].numel() ** 0.5
    return module


def make_acp(case, dtype=torch.float32, memory_format=NHWC):
    batch, dim, height, width, options = ACP[case]
    module = scaled(fastattn.AggressiveConvPooling(dim, **options)).to(DEVICE, dtype)
    return module, (draw(batch, dim, height, width, dtype=dtype, memory_format=memory_format),)


def tokens(batch, count, dim, dtype=torch.float32, seed=1):
    return draw(batch, dim, count, 1, dtype=dtype, seed=seed).squeeze(3).mT.contiguous()


def make_cat(case, dtype=torch.float32):
    batch, count, dim, concepts = CAT[case]
    module = scaled(fastattn.ConceptualAttention(dim, concepts)).to(DEVICE, dtype)
    return module, (tokens(batch, count, dim, dtype),)


def make_both(case, dtype=torch.float32):
    batch, size, dim, options = BOTH[case]
    module = scaled(fastattn.EnhancedInteraction(dim, **options)).to(DEVICE, dtype)
    return module, (tokens(batch, size[0] * size[1] + module.num_prefix_tokens, dim, dtype), size)


def direct_acp(x: Tensor, p: dict[str, Tensor], layers: int, pool: int, aggregate: str) -> Tensor:
    """Convolve tap by tap, pool window by window, resize pixel by pixel."""
    height, width = x.shape[2:]
    levels = [x]
    for layer in range(layers):
        weight, bias = p[f"convs.{layer}.weight"], p[f"convs.{layer}.bias"]
        rows, columns, size = *levels[-1].shape[2:], weight.shape[2]
        padded = torch.nn.functional.pad(levels[-1], [size // 2] * 4)
        convolved = bias[:, None, None].expand(levels[-1].shape)
        for u in range(size):
            for v in range(size):
                convolved = convolved + weight[:, 0, u, v, None, None] * padded[:, :, u : u + rows, v : v + columns]
        pooled = []
        for top in range(0, rows, pool):
            for left in range(0, columns, pool):
                window = convolved[:, :, top : top + pool, left : left + pool].flatten(2)
                best = window[:, :, 0]
                for i in range(1, window.shape[2]):  # the first of equal ones
                    best = torch.where(window[:, :, i] > best, window[:, :, i], best)
                pooled.append(best)
        levels.append(torch.stack(pooled, 2).unflatten(2, (-(-rows // pool), -(-columns // pool))))
    for i, level in enumerate(levels):
        h, w = level.shape[2:]
        pixels = [level[:, :, r * h // height, c * w // width] for r in range(height) for c in range(width)]
        levels[i] = torch.stack(pixels, 2).unflatten(2, (height, width))
    matrix = p["proj.weight"].flatten(1)
    total = levels[0] * 0 if aggregate == "sum" else None
    if aggregate == "sum":
        for level in levels:
            total = total + level
    else:
        total = torch.cat(levels, 1)
    return torch.einsum("oc,bchw->bohw", matrix, total) + p["proj.bias"][:, None, None]


def direct_cat(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Attend sample by sample and concept by concept."""
    outs = []
    for sample in x:
        scores = [sample @ concept for concept in p["score.weight"]]  # [N] each
        values = sample @ p["value.weight"].T + p["value.bias"]
        concepts = []
        for score in scores:
            shares = (score - score.max()).exp()
            concepts.append((shares / shares.sum()) @ values)
        largest = torch.stack(scores).amax(0)
        shares = [(score - largest).exp() for score in scores]
        given = sum(share[:, None] * concept for share, concept in zip(shares, concepts, strict=True))
        outs.append(sample + given / sum(shares)[:, None] @ p["out.weight"].T + p["out.bias"])
    return torch.stack(outs)


def direct(module, x: Tensor, size=None) -> Tensor:
    p = dict(module.named_parameters())
    if module.operation == "acp":
        return direct_acp(x, p, module.num_layers, module.pool_size, module.aggregate)
    if module.operation == "cat":
        return direct_cat(x, p)
    acp = {name.removeprefix("acp."): t for name, t in p.items() if name.startswith("acp.")}
    cat = {name.removeprefix("cat."): t for name, t in p.items() if name.startswith("cat.")}
    first, (height, width) = module.num_prefix_tokens, size
    grid = x[:, first:].transpose(1, 2).reshape(len(x), -1, height, width)
    wider = grid + direct_acp(grid, acp, module.num_layers, module.pool_size, module.acp.aggregate)
    return direct_cat(torch.cat([x[:, :first], wider.flatten(2).transpose(1, 2)], 1), cat)


def results(call, module, inputs, grad=None) -> dict[str, Tensor]:
    """Return the output, the gradient of x and every parameter's, by name."""
    x, *rest = inputs
    x = x.detach().requires_grad_()
    out = call(x, *rest)
    leaves = {"grad_x": x, **dict(module.named_parameters())}
    grads = torch.autograd.grad(out, list(leaves.values()), upstream(out) if grad is None else grad)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def upstream(out: Tensor) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(2)
    return torch.randn(out.shape, generator=generator, device="cpu", dtype=torch.float64).to(out)


def on(backend, call):
    """Return a call that follows a backend."""

    def chosen(*inputs):
        with fastattn.use_backend(backend):
            return call(*inputs)

    return chosen


def check(module, inputs) -> dict[str, Tensor]:
    """Assert that the fast path is accurate, and return what it gives."""
    exact, (x, *rest) = copy.deepcopy(module).double(), inputs
    grad = upstream(x)
    truth = results(lambda *args: direct(exact, *args), exact, (x.double(), *rest), grad.double())
    copies = [x.contiguous(memory_format=layout) for layout in FORMATS] if x.dim() == 4 else [x]
    eager = [results(on("reference", module), module, (t, *rest), grad) for t in copies]
    got = results(on(FAST, module), module, inputs, grad)
    assert_accurate(got, truth, *eager)
    return got


@pytest.mark.parametrize(("case", "memory_format"), by_turns(case for case in ACP if case != "larger"), ids=named)
def test_acp(case, memory_format):
    module, inputs = make_acp(case, memory_format=memory_format)
    got = check(module, inputs)
    for name in ("out", "grad_x"):
        assert got[name].shape == inputs[0].shape
        assert got[name].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("case", CAT)
def test_cat(case):
    check(*make_cat(case))


@pytest.mark.parametrize("case", BOTH)
def test_both(case):
    check(*make_both(case))


MAKES = {"acp": make_acp, "cat": make_cat, "interaction": make_both}
CASES = {"acp": ACP, "cat": CAT, "interaction": BOTH}
ALL = [(name, case) for name, cases in CASES.items() for case in cases]
DEFAULTS = [(name, "default") for name in MAKES]


@pytest.mark.parametrize(("name", "case"), ALL)
def test_the_reference_in_float64(name, case):
    module, inputs = MAKES[name](case, torch.float64)
    truth = results(lambda *args: direct(module, *args), module, inputs)
    got = results(on("reference", module), module, inputs)
    assert_accurate(got, truth, got)


def test_strides_of_neither_format():
    module, (x,) = make_acp("default")
    x = x.repeat_interleave(2, dim=3)[..., ::2]
    assert check(module, (x,))["out"].is_contiguous()


@pytest.mark.parametrize("name", ["cat", "interaction"])
def test_tokens_that_are_not_contiguous(name):
    module, (x, *rest) = MAKES[name]("default")
    check(module, (x.mT.contiguous().mT, *rest))
    if name == "cat":
        check(module, (x.repeat_interleave(2, dim=1)[:, ::2], *rest))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=named)
@pytest.mark.parametrize(
    ("name", "case"),
    [("acp", "larger"), ("cat", "larger"), ("interaction", "larger"), *thin([("acp", "sum")])],
)
def test_narrow_dtypes(name, case, dtype):
    """In many numbers, of which eager's error is no chance."""
    check(*MAKES[name](case, dtype))


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_the_first_of_equal_maxima_has_the_gradient(memory_format):
    """Whole numbers, of which sums are exact: windows of equal values, and of two greatest ones."""
    module, (x,) = make_acp("one layer", memory_format=memory_format)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.ones_like(p) if "convs" in name else p)
    x = x.clone(memory_format=torch.preserve_format)
    x[:, :2] = 3
    x[:, 2] = (4 * x[:, 2]).round().clamp(-1, 1)
    truth, got = (results(on(name, module), module, (x,)) for name in ("reference", FAST))
    for name, tensor in truth.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_a_nan_is_not_lost_and_stays_in_its_sample():
    module, (x,) = make_acp("default")
    x = torch.cat([x, x], dim=3)
    x[0, 1, 2, 3] = torch.nan
    expected, got = (on(name, module)(x).isnan() for name in ("reference", FAST))
    assert expected[0].any()
    assert not expected[0].all()
    assert got[0][expected[0]].all()
    assert not got[1].any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_a_nan_among_tokens_stays_in_its_sample():
    module, (x,) = make_cat("default")
    x[1, 7, 3] = torch.nan
    got = results(on(FAST, module), module, (x,))
    for name in ("out", "grad_x"):
        assert got[name][0].isfinite().all()
        assert got[name][1].isnan().all()
    assert got["out.bias"].isfinite().all()


@pytest.mark.parametrize("least", [0.1, 3.0], ids=["rising", "falling"])
def test_scores_that_rise_or_fall_along_the_tokens(least):
    """The greatest score so far changes, or not, from part to part of the tokens."""
    module, _ = make_cat("default")
    x = tokens(1, 400, 16)
    check(module, (x * torch.linspace(least, 3.1 - least, 400, device=x.device)[:, None],))


@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores_need_the_maximum(sign):
    module, (x,) = make_cat("default")
    with torch.no_grad():
        module.score.weight *= sign * 1e3
    out = on(FAST, module)(x)
    torch.testing.assert_close(out, direct(module, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "case"), DEFAULTS)
def test_the_same_call_gives_the_same_bits(name, case):
    module, inputs = MAKES[name](case)
    first, second = (results(on(FAST, module), module, inputs) for _ in range(2))
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


LEARNING = {
    "acp": [("convs.0.bias",), ("grad_x",), ("proj.weight", "convs.1.weight")],
    "cat": [("grad_x",), ("score.weight",), ("value.bias", "out.weight")],
    "interaction": [("cat.score.weight", "acp.proj.bias"), ("grad_x",), ("acp.convs.1.bias",)],
}


@pytest.mark.parametrize(
    ("name", "learning"),
    [
        (name, learning)
        for name, choices in LEARNING.items()
        for learning in (choices if name == "cat" else thin(choices))
    ],
)
def test_frozen_parts(name, learning, backend):
    module, (x, *rest) = MAKES[name]("default")
    expected = results(module, module, (x, *rest))
    for key, p in module.named_parameters():
        p.requires_grad_(key in learning)
    out = module(x.requires_grad_("grad_x" in learning), *rest)
    out.backward(upstream(out))
    for key, leaf in {"grad_x": x, **dict(module.named_parameters())}.items():
        assert (leaf.grad is not None) == (key in learning), key
        if key in learning:
            torch.testing.assert_close(leaf.grad, expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16], ids=named)
@pytest.mark.parametrize("name", MAKES)
def test_autocast_gives_eagers_dtype(name, to):
    module, (x, *rest) = MAKES[name]("default")
    with torch.autocast(DEVICE, to):
        eager, out = on("reference", module)(x, *rest), on(FAST, module)(x.requires_grad_(), *rest)
    assert out.dtype == eager.dtype
    assert (out - eager).float().norm() < 0.03 * eager.float().norm()
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.fixture
def fresh_dynamo():
    """Forget compiled code, so that no test meets another's recompilation limit."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("name", "compiler"),
    # which takes half a minute
    [*((name, "aot_eager") for name in MAKES), pytest.param("interaction", "inductor", marks=pytest.mark.full)],
)
def test_compile_fullgraph(name, compiler, backend):
    if compiler == "inductor" and backend != "native":
        pytest.skip("the others are not its to compile: eager PyTorch is no fast path, Triton kernels are opaque")
    module, inputs = MAKES[name]("default")
    compiled = torch.compile(module, fullgraph=True, backend=compiler)
    expected, got = results(module, module, inputs), results(compiled, module, inputs)
    for key, tensor in expected.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("strict", thin([False, True]))
def test_export(name, strict, backend):
    module, inputs = MAKES[name]("default")
    with torch.no_grad():
        program = torch.export.export(module.eval(), inputs, strict=strict)
        torch.testing.assert_close(program.module()(*inputs), module(*inputs))


def acp_without_biases(module, x):
    convs, (weight, _) = module.operands()
    return functional.aggressive_conv_pooling(x, [(kernel, None) for kernel, _ in convs], (weight, None))


def cat_without_biases(module, x):
    score, (value, _), (out, _) = module.operands()
    return functional.conceptual_attention(x, score, (value, None), (out, None))


@pytest.mark.parametrize("name", ["acp", "cat"])
def test_no_bias_is_a_bias_of_zeros(name, backend):
    module, (x,) = MAKES[name]("default")
    got = {"acp": acp_without_biases, "cat": cat_without_biases}[name](module, x)
    with torch.no_grad():
        for key, p in module.named_parameters():
            p.mul_(0 if key.endswith("bias") else 1)
    torch.testing.assert_close(got, module(x))


@pytest.mark.cpu
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ["acp", "cat"])
def test_opcheck_of_the_extension(name, save):
    module, (x,) = MAKES[name]("default")
    params, operators = [p.detach() for p in module.parameters()], torch.ops.fastattn
    options = [module.pool_size] if name == "acp" else []
    forward, backward = (getattr(operators, f"whole_{name}_{way}").default for way in ("forward", "backward"))
    torch.library.opcheck(forward, (x, params, *options, save))
    if save:
        out, saved = forward(x, params, *options, save)
        torch.library.opcheck(backward, (out, x, saved, params, *options, True, True))


@pytest.mark.cpu
def test_the_extension_keeps_nothing_of_tokens_times_concepts(native):
    def kept(count, concepts):
        params = [p.detach() for p in fastattn.ConceptualAttention(4, concepts).parameters()]
        _, saved = torch.ops.fastattn.whole_cat_forward(tokens(1, count, 4), params, True)
        assert saved.shape == (1, native.extension().CatPlan(1, count, 4, concepts, 0, 0).saved_size)
        return saved.numel()

    both = kept(600, 160) - kept(600, 80) - kept(300, 160) + kept(300, 80)
    assert both == 0
    assert kept(600, 160) < 600 * 160 / 20


@pytest.mark.parametrize("name", ["cat", "interaction", *(["acp"] if FAST == "triton" else [])])
def test_double_backward_raises(name):
    module, (x, *rest) = MAKES[name]("default")
    out = on(FAST, module)(x.requires_grad_(), *rest)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(grad.square().sum(), x)


@pytest.mark.parametrize("name", MAKES)
def test_an_empty_batch(name, backend):
    module, (x, *rest) = MAKES[name]("default")
    assert module(x[:0], *rest).shape == (0, *x.shape[1:])


@pytest.mark.parametrize("name", MAKES)
def test_copies_repr_and_explain(name, backend):
    module, inputs = MAKES[name]("default")
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    twins = copy.deepcopy(module), pickle.loads(pickle.dumps(module)), MAKES[name]("default")[0]
    twins[-1].load_state_dict(torch.load(io.BytesIO(buffer.getvalue())))
    for twin in twins:
        assert torch.equal(twin(*inputs), module(*inputs))
    assert repr(module).startswith(f"{type(module).__name__}(")
    assert f"{backend}: can serve" in fastattn.explain(module, inputs[0])


STATE = {
    "acp": {
        "convs.0.weight": (8, 1, 5, 5),
        "convs.0.bias": (8,),
        "convs.1.weight": (8, 1, 5, 5),
        "convs.1.bias": (8,),
        "proj.weight": (8, 24, 1, 1),
        "proj.bias": (8,),
    },
    "cat": {
        "score.weight": (3, 8),
        "value.weight": (8, 8),
        "value.bias": (8,),
        "out.weight": (8, 8),
        "out.bias": (8,),
    },
}


def test_state_dicts():
    made = {
        "acp": fastattn.AggressiveConvPooling(8, kernel_size=5),
        "cat": fastattn.ConceptualAttention(8, 3),
        "sum": fastattn.AggressiveConvPooling(8, kernel_size=5, aggregate="sum"),
        "both": fastattn.EnhancedInteraction(8, kernel_size=5, num_concepts=3, num_prefix_tokens=1),
    }
    found = {name: {key: tuple(t.shape) for key, t in m.state_dict().items()} for name, m in made.items()}
    assert found["acp"] == STATE["acp"]
    assert found["cat"] == STATE["cat"]
    assert found["sum"] == {**STATE["acp"], "proj.weight": (8, 8, 1, 1)}
    assert found["both"] == {f"{name}.{key}": shape for name in STATE for key, shape in STATE[name].items()}


BAD_OPTIONS = {
    "no channels": (fastattn.AggressiveConvPooling, {"dim": 0}, "dim must be at least 1, got 0"),
    "no layer": (fastattn.AggressiveConvPooling, {"num_layers": 0}, "num_layers must be at least 1, got 0"),
    "even kernel": (fastattn.AggressiveConvPooling, {"kernel_size": 4}, "kernel_size must be odd, got 4"),
    "no window": (fastattn.AggressiveConvPooling, {"pool_size": 0}, "pool_size must be at least 1, got 0"),
    "aggregate": (
        fastattn.AggressiveConvPooling,
        {"aggregate": "mean"},
        "aggregate must be one of concat, sum, got 'mean'",
    ),
    "no concept": (fastattn.ConceptualAttention, {"num_concepts": 0}, "num_concepts must be at least 1, got 0"),
    "no concept of both": (fastattn.EnhancedInteraction, {"num_concepts": -1}, "num_concepts .* got -1"),
    "prefix": (
        fastattn.EnhancedInteraction,
        {"num_prefix_tokens": -1},
        "num_prefix_tokens must not be negative, got -1",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case):
    cls, options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        cls(**{"dim": 8, **options})


BAD_INPUTS = {
    "map without batch": ("acp", lambda x: (x[0],), r"x must have 4 dimensions \(B, C, H, W\), got shape \(4, 6, 8\)"),
    "map of other channels": ("acp", lambda x: (x[:, :3],), "x has 3 channels, expected 4"),
    "integer map": ("acp", lambda x: (x.long(),), "x must be real floating point, got torch.int64"),
    "map without pixels": ("acp", lambda x: (x[:, :, :0],), "the map is 0 x 8: there is nothing to pool"),
    "a pixel to pool": (
        "acp",
        lambda x: (x[..., :2, :2],),
        r"layer 1 of 2 would pool a map of 1 x 1: a map of 2 x 2 is too small for 2 layers with pool_size 2",
    ),
    "tokens without batch": ("cat", lambda x: (x[0],), r"x must have 3 dimensions \(B, N, C\), got shape \(20, 16\)"),
    "tokens of other channels": ("cat", lambda x: (x[..., :6],), "x has 6 channels, expected 16"),
    "integer tokens": ("cat", lambda x: (x.long(),), "x must be real floating point, got torch.int64"),
    "no tokens": ("cat", lambda x: (x[:, :0],), "x has no tokens"),
    "another grid": ("interaction", lambda x: (x, (4, 6)), r"x has 20 tokens, expected 0 \+ 4 \* 6 = 24"),
    "a grid without rows": ("interaction", lambda x: (x[:, :1], (-1, -1)), "the map is -1 x -1"),
    "a pixel of a grid": ("interaction", lambda x: (x[:, :1], (1, 1)), "layer 0 of 2 would pool a map of 1 x 1"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(case, backend):
    name, change, message = BAD_INPUTS[case]
    module, (x, *_) = MAKES[name]("default")
    with pytest.raises(ValueError, match=message):
        module(*change(x))


BAD_PARAMETERS = {
    "aggregate": ({"aggregate": "mean"}, "aggregate must be one of concat, sum, got 'mean'"),
    "projection": ({"aggregate": "sum"}, "proj has 12 inputs and 4 outputs, expected 4 and 4"),
    "window": ({"pool_size": 0}, "pool_size must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_bad_parameters(case):
    module, (x,) = make_acp("default")
    options, message = BAD_PARAMETERS[case]
    with pytest.raises(ValueError, match=message):
        functional.aggressive_conv_pooling(x, *module.operands(), **options)
    convs, proj = module.operands()
    with pytest.raises(ValueError, match=r"convs 1 has a weight \(4, 1, 2, 3\), expected \(4, 1, k, k\) with odd k"):
        functional.aggressive_conv_pooling(x, [convs[0], (convs[1][0][..., :2, :], convs[1][1])], proj)
    with pytest.raises(ValueError, match="convs has no layer, expected at least 1"):
        functional.aggressive_conv_pooling(x, [], proj)


BAD_CONCEPTS = {
    "no concept": (lambda s, v, o: (s[:0], v, o), "score has 0 concepts, expected at least 1"),
    "value": (lambda s, v, o: (s, (v[0][:, :3], v[1]), o), r"value has shapes \(16, 3\) and \(16,\), expected"),
    "bias of out": (lambda s, v, o: (s, v, (o[0], o[1][:3])), r"the bias of out has shape \(3,\), expected \(16,\)"),
}


@pytest.mark.parametrize("case", BAD_CONCEPTS)
def test_bad_concepts(case, backend):
    change, message = BAD_CONCEPTS[case]
    module, (x,) = MAKES["cat"]("default")
    with pytest.raises(ValueError, match=message):
        functional.conceptual_attention(x, *change(*module.operands()), backend=backend)
