"""CFSAM and its partitioned attention against a direct computation in float64 that loops over the parts."""

import copy
import importlib
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastattn
from fastattn.bench.measures import peak_bytes
from fastattn.cfsam import operation as composition
from fastattn.cfsam.partition_attention import aligned, rows
from fastattn.cfsam.reference import Level
from fastattn.functional import partition_attention
from tests.helpers import (
    DEVICE,
    DTYPES,
    FAST,
    FORMATS,
    INTERPRETED,
    assert_accurate,
    by_fast_first,
    by_turns,
    draw,
    few,
    few_interpreted,
    named,
    randomize,
    slow_interpreted,
    thin,
)

pytestmark = pytest.mark.triton

SIZES = ((7, 6), (4, 3), (1, 1))  # 55 tokens
TINY = ((3, 2), (2, 1), (1, 1))  # 9 tokens
CHANNELS = (8, 12, 8)
NHWC = torch.channels_last
# (sizes, options)
CASES = {
    "default": (SIZES, {}),
    "55 tokens in 5 parts": (SIZES, {"num_parts": 5}),
    "55 tokens in 4 parts, resized to 56": (SIZES, {"num_parts": 4}),
    "9 tokens in 5 parts, resized to 10": (TINY, {"num_parts": 5}),
    "9 tokens in 6 parts, resized to 12": (TINY, {"num_parts": 6}),
    "one part": (SIZES, {"num_parts": 1}),
    "a part for each token": (TINY, {"num_parts": 9}),
    "one level": (((5, 7),), {"num_parts": 5}),
    "one pixel": (((1, 1),), {"num_parts": 1}),
    "three pixels in two parts": (((1, 1), (2, 1)), {"num_parts": 2}),
    "two blocks, resized": (SIZES, {"depth": 2, "num_parts": 3}),
    "no block": (SIZES, {"depth": 0, "num_parts": 3}),
    "no block, no fusion": (SIZES, {"depth": 0, "fusion": False}),
    "no fusion": (SIZES, {"fusion": False, "num_parts": 5}),
    "no 3x3 convolutions": (SIZES, {"local": False, "num_parts": 5}),
    "biases everywhere": (SIZES, {"conv_bias": True, "num_parts": 5}),
    "no biases of q, k and v": (SIZES, {"qkv_bias": False, "num_parts": 5}),
    "a 3x3 convolution folded": (((13, 12), (2, 2)), {"conv_bias": True, "num_parts": 4, "dim": 16, "num_heads": 1}),
    "heads of 32": (SIZES, {"dim": 64, "num_parts": 5}),
    "narrow hidden layer": (SIZES, {"mlp_ratio": 0.5, "num_parts": 5}),
}


def make(sizes, dtype=torch.float32, batch=2, memory_format=torch.contiguous_format, **options):
    """Return a module and its maps."""
    channels = (CHANNELS * 2)[: len(sizes)]
    module = fastattn.CFSAM(channels, **{"dim": 32, "num_heads": 2, **options})
    maps = [
        draw(batch, c, *size, dtype=dtype, memory_format=memory_format, seed=i)
        for i, (c, size) in enumerate(zip(channels, sizes, strict=True))
    ]
    return randomize(module).to(DEVICE, dtype), maps


def direct_attention(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> Tensor:
    """Attend part by part and head by head."""
    out, width = torch.empty_like(q), q.shape[2] // num_heads
    for part in range(num_parts):
        for head in range(num_heads):
            own = (slice(None), slice(part, None, num_parts), slice(head * width, (head + 1) * width))
            scores = q[own] @ k[own].transpose(1, 2) / width**0.5
            out[own] = torch.softmax(scores, dim=2) @ v[own]
    return out


def resizing(source: int, target: int) -> Tensor:
    """Return the matrix (target, source) of linear resizing: two taps in each row."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        place = min(max((i + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(place)
        matrix[i, low] += 1 - (place - low)
        matrix[i, min(low + 1, source - 1)] += place - low
    return matrix


def direct(module: fastattn.CFSAM, maps: list[Tensor]) -> list[Tensor]:
    """Compute CFSAM step by step from the parameters' names."""
    p = dict(module.named_parameters())

    def conv(x, name, padding=0):
        return F.conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), padding=padding)

    def linear(x, name):
        out = x @ p[f"{name}.weight"].T
        return out + p[f"{name}.bias"] if f"{name}.bias" in p else out

    def norm(x, name):
        x = x - x.mean(2, keepdim=True)
        x = x / (x.square().mean(2, keepdim=True) + 1e-5).sqrt()
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    local = []
    for i, x in enumerate(maps):
        x = conv(x, f"local.{i}.0", padding=1) if module.has_local else x
        local.append(conv(x, f"local.{i}.1"))
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in local], 1)
    y, count = tokens, tokens.shape[1]
    length = -(-count // module.num_parts) * module.num_parts
    if module.depth and length != count:
        y = resizing(count, length).to(y) @ y
    for i in range(module.depth):
        normed = norm(y, f"blocks.{i}.norm1")
        q, k, v = (linear(normed, f"blocks.{i}.{name}") for name in "qkv")
        y = y + linear(direct_attention(q, k, v, module.num_parts, module.num_heads), f"blocks.{i}.proj")
        hidden = linear(norm(y, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.0")
        y = y + linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), f"blocks.{i}.mlp.2")
    if y.shape[1] != count:
        y = resizing(length, count).to(y) @ y
    outs, start = [], 0
    for i, x in enumerate(local):
        pixels = x.shape[2] * x.shape[3]
        part = y[:, start : start + pixels].transpose(1, 2).reshape(x.shape)
        start += pixels
        outs.append(conv(torch.cat([x, part], 1) if module.has_fusion else part, f"fuse.{i}"))
    return outs


def results(call, maps, module=None, grads=None) -> dict[str, Tensor]:
    """Return outputs, the inputs' gradients and every parameter's, by name."""
    maps = [x.detach().requires_grad_() for x in maps]
    outs = call(maps)
    outs = list(outs) if isinstance(outs, list | tuple) else [outs]
    leaves = {f"grad_{i}": x for i, x in enumerate(maps)} | dict(module.named_parameters() if module else ())
    grads = grads or upstream(outs)
    found = torch.autograd.grad(outs, list(leaves.values()), [g.to(o) for g, o in zip(grads, outs, strict=True)],
                                allow_unused=True)  # fmt: skip
    return {f"out_{i}": out.detach() for i, out in enumerate(outs)} | {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def upstream(outs) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(2)
    options = {"generator": generator, "device": "cpu", "dtype": torch.float64}
    return [torch.randn(out.shape, **options).to(out) for out in outs]


def on(backend, call):
    """Return a call that follows a backend."""

    def chosen(inputs):
        with fastattn.use_backend(backend):
            return call(inputs)

    return chosen


def check(got, truth, *eager):
    """Compare by name; outputs are neighbours of outputs, gradients of gradients."""
    for group in (True, False):
        few = [{name: t for name, t in run.items() if name.startswith("out") == group} for run in (got, truth, *eager)]
        assert_accurate(*few)


def check_module(module, maps):
    grads = upstream(maps)
    exact = copy.deepcopy(module).double()
    truth = results(lambda x: direct(exact, x), [x.double() for x in maps], exact, grads)
    eager = [
        results(on("reference", module), [x.contiguous(memory_format=layout) for x in maps], module, grads)
        for layout in FORMATS
    ]
    got = results(on(FAST, module), maps, module, grads)
    check(got, truth, *eager)
    return got


@pytest.mark.parametrize(("case", "memory_format"), by_turns(CASES), ids=named)
def test_numbers(case, memory_format):
    sizes, options = CASES[case]
    module, maps = make(sizes, memory_format=memory_format, **options)
    got = check_module(module, maps)
    for i, x in enumerate(maps):
        assert got[f"out_{i}"].is_contiguous(memory_format=memory_format)
        assert got[f"grad_{i}"].is_contiguous(memory_format=memory_format)
        assert got[f"out_{i}"].shape == x.shape


@pytest.mark.parametrize("case", CASES)
def test_the_reference_in_float64(case):
    sizes, options = CASES[case]
    module, maps = make(sizes, torch.float64, **options)
    truth = results(lambda x: direct(module, x), maps, module)
    got = results(on("reference", module), maps, module)
    check(got, truth, got)


def test_levels_of_different_formats():
    module, maps = make(SIZES, num_parts=5)
    maps[1] = maps[1].contiguous(memory_format=NHWC)
    maps[0] = maps[0].repeat_interleave(2, dim=3)[..., ::2]  # neither format
    got = check_module(module, maps)
    assert got["out_1"].is_contiguous(memory_format=NHWC)
    assert got["out_0"].is_contiguous()


@pytest.mark.parametrize("backend", ["reference", FAST])
@pytest.mark.parametrize("watched", [False, True], ids=["whole", "through its children"])
def test_maps_keep_their_format_where_tokens_have_one_channel(backend, watched):
    if backend == "triton" and not watched:
        pytest.skip("its kernels take larger heads")
    module, maps = make(SIZES, memory_format=NHWC, dim=1, num_heads=1)
    if watched:
        module.blocks[0].q.register_forward_hook(lambda *_: None)
    run = module if watched else on(backend, module)
    for out, x in zip(run(maps), maps, strict=True):
        assert [out.is_contiguous(memory_format=each) for each in FORMATS] == [
            x.is_contiguous(memory_format=each) for each in FORMATS
        ]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=named)
@pytest.mark.parametrize("case", ["55 tokens in 5 parts", *thin(["a 3x3 convolution folded", "two blocks, resized"])])
def test_narrow_dtypes(case, dtype):
    sizes, options = CASES[case]
    check_module(*make(sizes, dtype, **options))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=named)
def test_folded_convolutions_in_narrow_dtypes(dtype):
    """For inference, and from float32 parameters under autocast."""
    sizes, options = CASES["a 3x3 convolution folded"]
    for own in (dtype, torch.float32):
        module, maps = make(sizes, own, **options)
        with torch.no_grad(), torch.autocast(DEVICE, dtype, enabled=own != dtype):
            eager, got = on("reference", module)(maps), on(FAST, module)(maps)
            truth = on("reference", copy.deepcopy(module).double())([x.double() for x in maps])
        names = [f"out_{i}" for i in range(len(maps))]
        assert_accurate(*(dict(zip(names, outs, strict=True)) for outs in (got, truth, eager)))


# (batch, tokens of a part, parts, heads, channels of a head)
SHAPES = {
    "one token": (1, 1, 1, 1, 16),
    "a token per part": (2, 1, 3, 2, 16),
    "fewer than a block": (2, 5, 3, 2, 16),
    "blocks and a rest": (1, 150, 2, 2, 32),
    "whole blocks": (1, 128, 1, 1, 32),
    "heads of 64": (1, 70, 2, 1, 64),
    "heads of 128": (1, 40, 1, 2, 128),
}


def draw_qkv(batch, length, parts, heads, width, dtype=torch.float32, joint=False):
    joined = draw(batch, 3 * heads * width, length * parts, 1, dtype=dtype).squeeze(3).mT
    return [t if joint else t.contiguous() for t in joined.chunk(3, dim=2)]


def check_attention(qkv, parts, heads):
    def call(backend):
        return lambda t: partition_attention(*t, parts, heads, backend=backend)

    truth = results(lambda t: direct_attention(*t, parts, heads), [t.double() for t in qkv])
    eager, got = (results(call(backend), qkv) for backend in ("reference", FAST))
    check(got, truth, eager)


@pytest.mark.parametrize("joint", [False, True], ids=["apart", "slices of one tensor"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape, joint):
    _, _, parts, heads, _ = SHAPES[shape]
    check_attention(draw_qkv(*SHAPES[shape], joint=joint), parts, heads)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=named)
def test_attention_in_narrow_dtypes(dtype):
    check_attention(draw_qkv(2, 75, 2, 2, 32, dtype), 2, 2)


UNALIGNED = {
    "rows": lambda t: F.pad(t, (1, 0))[..., 1:],
    "starts": lambda t: F.pad(t.flatten(), (1, 0))[1:].view(t.shape),
    "a stride of zero": lambda t: t[:, :1].expand(t.shape),
}


@pytest.mark.parametrize("how", UNALIGNED)
def test_tensors_that_are_not_aligned(how):
    parts, heads, width = 3, 1, 16
    qkv = [UNALIGNED[how](t) for t in draw_qkv(1, 21, parts, heads, width)]
    check_attention(qkv, parts, heads)
    assert all(rows(t).data_ptr() % 16 == 0 and rows(t).stride(1) * t.element_size() % 16 == 0 for t in qkv)
    assert all(aligned(t).data_ptr() % 16 == 0 and aligned(t).is_contiguous() for t in qkv)


@pytest.fixture(params=["tf32", "ieee"])
def precision(request):
    """Set the products of float32 by torch's newer interface, after which it refuses to read the older one."""
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, request.param
    yield request.param
    products.fp32_precision = before


def test_products_follow_either_of_torchs_interfaces(precision):
    if FAST == "triton":
        launch = importlib.import_module("fastattn.kernels.common.launch")
        assert launch.product_precision(torch.float32) == {"tf32": "tf32", "ieee": "tf32x3"}[precision]
    check_attention(draw_qkv(1, 5, 2, 1, 16), 2, 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores_need_the_maximum(sign):
    q, _, v = draw_qkv(1, 40, 2, 1, 32)
    out = partition_attention(1e3 * q, sign * q, v, 2, 1, backend=FAST)
    torch.testing.assert_close(out, direct_attention(1e3 * q, sign * q, v, 2, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows beyond the length overflow, and are not stored
def test_scores_far_below_zero_leave_the_gradients_finite():
    """A masked key's score is zero, which lies far above all others here."""
    q, k, v = draw_qkv(1, 33, 1, 1, 32)
    qkv = [q.abs() * 10, -k.abs() * 10, v]
    truth = results(lambda t: direct_attention(*t, 1, 1), [t.double() for t in qkv])
    got = results(lambda t: partition_attention(*t, 1, 1, backend=FAST), qkv)
    for name, tensor in truth.items():
        assert (got[name] - tensor).norm() < 1e-3 * truth["grad_2"].norm(), name


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
def test_memory_is_linear_in_the_tokens():
    def peak(backend, length):
        qkv = draw_qkv(1, length, 1, 1, 16)
        return peak_bytes(lambda: results(lambda t: partition_attention(*t, 1, 1, backend=backend), qkv))

    length = 32 if INTERPRETED else 1024
    assert peak(FAST, 4 * length) < 4.4 * peak(FAST, length)
    assert peak("reference", 2048) > 10 * peak("reference", 512)  # so that the measure tells them apart


def test_the_same_call_gives_the_same_bits():
    module, maps = make(SIZES, num_parts=4)
    first, second = (results(on(FAST, module), maps, module) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("learning", [("maps",), ("blocks.0.norm1.weight",), ("fuse.0.weight", "blocks.0.q.bias")])
def test_frozen_parts(learning, backend):
    module, maps = make(SIZES, num_parts=4)
    expected = results(module, maps, module)
    for name, p in module.named_parameters():
        p.requires_grad_(name in learning)
    maps = [x.requires_grad_("maps" in learning) for x in maps]
    outs = module(maps)
    torch.autograd.backward(outs, [g.to(o) for g, o in zip(upstream(outs), outs, strict=True)])
    found = {f"grad_{i}": x for i, x in enumerate(maps)} | dict(module.named_parameters())
    for name, leaf in found.items():
        wanted = name in learning or ("maps" in learning and name.startswith("grad"))
        assert (leaf.grad is not None) == wanted, name
        if wanted:
            torch.testing.assert_close(leaf.grad, expected[name])


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16], ids=named)
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16, torch.float32)], ids=["float32", "mixed"])
def test_autocast_gives_eagers_dtype(dtypes, to):
    module, maps = make(SIZES, num_parts=4)
    maps = [x.to(dtypes[i % len(dtypes)]).requires_grad_() for i, x in enumerate(maps)]
    with torch.autocast(DEVICE, to):
        eager, outs = on("reference", module)(maps), on(FAST, module)(maps)
    for out, other in zip(outs, eager, strict=True):
        assert out.dtype == other.dtype == to
        assert (out - other).float().norm() < 0.03 * other.float().norm()
    sum(out.float().sum() for out in outs).backward()
    assert [x.grad.dtype for x in maps] == [x.dtype for x in maps]
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=named)
def test_autocast_of_the_attention_gives_eagers_dtype(dtype):
    qkv = draw_qkv(1, 20, 2, 1, 32, dtype)
    backend = "reference" if dtype == torch.float64 else FAST
    with torch.autocast(DEVICE, torch.float16):
        product = (qkv[0] @ qkv[1].mT).dtype
        assert partition_attention(*qkv, 2, 1, backend=backend).dtype == product


@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
@pytest.mark.skipif(FAST != "triton", reason="the CPU's path is made of torch's own operators")
def test_opcheck(save):
    q, k, v = (t.requires_grad_(save) for t in draw_qkv(1, 9, 2, 1, 16))
    ops = torch.ops.fastattn
    with torch.no_grad():
        torch.library.opcheck(ops.partition_attention_forward.default, (q, k, v, 2, 1))
        out, log = ops.partition_attention_forward(q, k, v, 2, 1)
        torch.library.opcheck(ops.partition_attention_backward.default, (out, q, k, v, out, log, 2, 1))
        maps = [draw(1, 16, 3, 2), draw(1, 16, 2, 1, memory_format=NHWC)]
        weight, bias = torch.rand(16), torch.rand(16)
        torch.library.opcheck(ops.token_gather_forward.default, (maps, None, weight, bias, 10, 1e-5))
        tokens, normed, statistics = ops.token_gather_forward(maps, None, weight, bias, 10, 1e-5)
        layouts = ([3, 2], [2, 1], [False, True])
        torch.library.opcheck(
            ops.token_gather_backward.default, (tokens, normed, tokens, statistics, weight, *layouts, True)
        )


@pytest.fixture
def fresh_dynamo():
    """Forget compiled code, so that no test meets another's recompilation limit."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("memory_format", few(thin(FORMATS)), ids=named)
@pytest.mark.parametrize("compiler", few(["aot_eager", "inductor"]))  # which takes C++ compilers a minute
def test_compile_fullgraph(memory_format, compiler, backend):
    if compiler == "inductor" and backend != "native":
        pytest.skip("the others are not its to compile: eager PyTorch is no fast path, Triton kernels are opaque")
    module, maps = make(SIZES, num_parts=4, memory_format=memory_format)
    compiled = torch.compile(module, fullgraph=True, backend=compiler)
    eager, got = results(module, maps, module), results(compiled, maps, module)
    for name, tensor in eager.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.full
def test_compile_dynamic_shapes(backend, request):
    if backend == "triton" and torch.__version__.startswith("2.14."):
        reason = "torch 2.14's Dynamo asserts that no symbolic number enters an autograd function from outside"
        request.applymarker(pytest.mark.xfail(reason=reason, raises=Exception))
    module = make(SIZES, num_parts=3)[0]
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, sizes in ((2, SIZES), (3, ((8, 5), (3, 3), (2, 1)))):
        maps = make(sizes, batch=batch)[1]
        for out, other in zip(compiled(maps), module(maps), strict=True):
            torch.testing.assert_close(out, other)


@slow_interpreted
@pytest.mark.usefixtures("fresh_dynamo")
@by_fast_first
def test_compile_the_functional(backend):
    compiled = torch.compile(lambda q, k, v: partition_attention(q, k, v, 2, 2), fullgraph=True, backend="aot_eager",
                             dynamic=True)  # fmt: skip
    for batch, length, width in ((1, 9, 16), (2, 7, 16), (2, 7, 32)):
        qkv = draw_qkv(batch, length, 2, 2, width)
        torch.testing.assert_close(compiled(*qkv), partition_attention(*qkv, 2, 2))


@pytest.mark.parametrize("strict", few_interpreted([False, True]), ids=["not strict", "strict"])
def test_export(strict, backend):
    module, maps = make(SIZES, num_parts=4)
    program = torch.export.export(module.eval(), (maps,), strict=strict)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    for out, other in zip(torch.export.load(stored).module()(maps), module(maps), strict=True):
        torch.testing.assert_close(out, other)


@slow_interpreted
def test_export_with_a_dynamic_batch(backend):
    module, maps = make(SIZES, batch=3, num_parts=4)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(module.eval(), (maps,), dynamic_shapes=([batch] * len(maps),))
    maps = make(SIZES, batch=5)[1]
    for out, other in zip(program.module()(maps), module(maps), strict=True):
        torch.testing.assert_close(out, other)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(how, backend):
    module, maps = make(SIZES, num_parts=4)
    twin = how(module)
    assert all(map(torch.equal, twin(maps), module(maps)))
    assert repr(twin) == repr(module)


def test_double_backward_raises():
    module, maps = make(SIZES, num_parts=4)
    maps[0].requires_grad_()
    out = on(FAST, module)(maps)[0].sum()
    with pytest.raises(RuntimeError, match=r"double backward|is not implemented"):
        torch.autograd.grad(torch.autograd.grad(out, maps[0], create_graph=True)[0].square().sum(), maps[0])
    out = on("reference", module)(maps)[0].sum()
    torch.autograd.grad(torch.autograd.grad(out, maps[0], create_graph=True)[0].square().sum(), maps[0])


def test_inputs_are_left_alone(backend):
    module, maps = make(SIZES, num_parts=4)
    before, state = [x.clone() for x in maps], copy.deepcopy(module.state_dict())
    results(module, maps, module)
    assert all(map(torch.equal, maps, before))
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@slow_interpreted
def test_export_asks_no_batch_whether_to_fold(backend):
    """Folding pays from some number of images on, which must not become a condition on the batch."""
    module = fastattn.CFSAM((64,), dim=32, num_heads=1).eval()
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(module, ([torch.randn(3, 64, 4, 4)],), dynamic_shapes=([batch],))
    x = torch.randn(40, 64, 4, 4)
    torch.testing.assert_close(program.module()([x])[0], module([x])[0], rtol=1e-4, atol=1e-4)


MIXED = {
    "blocks in float32": (torch.bfloat16, lambda module, maps: module.blocks.float()),
    "one weight in float32": (torch.bfloat16, lambda module, maps: module.fuse[1].float()),
}


@pytest.mark.parametrize("case", MIXED)
def test_mixed_dtypes_are_refused_as_by_eager(case):
    dtype, change = MIXED[case]
    module, maps = make(SIZES, dtype, num_parts=5)
    change(module, maps)
    with pytest.raises(RuntimeError):
        module(maps)
    with pytest.raises(RuntimeError, match="outside of autocast"), fastattn.use_backend(FAST):
        module(maps)


def test_fusion_copies_nothing():
    module, _ = make(SIZES, num_parts=5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        level = Level(None, (module.local[0][1].weight, None), (module.fuse[0].weight, None))
        own, other = torch.randn(2, 32, 7, 6, requires_grad=True), torch.randn(2, 55, 32, requires_grad=True)
        composition._fuse(own, other[:, :42], level, torch.contiguous_format)
    assert "aten::clone" not in {event.key for event in profile.key_averages()}


def test_an_empty_batch(backend):
    module, maps = make(SIZES, batch=0)
    assert [out.shape for out in module(maps)] == [x.shape for x in maps]


def test_function_transforms_are_served_by_the_reference():
    module, maps = make(SIZES, num_parts=5)
    stacked = torch.func.vmap(lambda *x: tuple(module([t[None] for t in x])))(*maps)
    for out, other in zip(stacked, module(maps), strict=True):
        torch.testing.assert_close(out.squeeze(1), other, rtol=1e-4, atol=1e-4)


def test_the_state_dict():
    module = fastattn.CFSAM((4, 6), dim=8, num_heads=2, conv_bias=True)
    convolutions = ("local.0.0", "local.0.1", "local.1.0", "local.1.1", "fuse.0", "fuse.1")
    layers = ("norm1", "norm2", "q", "k", "v", "proj", "mlp.0", "mlp.2")
    modules = {*convolutions, *(f"blocks.0.{name}" for name in layers)}
    assert set(module.state_dict()) == {f"{name}.{kind}" for name in modules for kind in ("weight", "bias")}
    bare = fastattn.CFSAM((4, 6), dim=8, num_heads=2, depth=0, local=False, fusion=False, qkv_bias=False)
    assert {name: tuple(p.shape) for name, p in bare.named_parameters()} == {
        "local.0.1.weight": (8, 4, 1, 1),
        "local.1.1.weight": (8, 6, 1, 1),
        "fuse.0.weight": (4, 8, 1, 1),
        "fuse.1.weight": (6, 8, 1, 1),
    }


def test_explain_and_warm_up():
    module, maps = make(SIZES)
    assert f"{FAST}: can serve" in fastattn.explain(module, maps)
    assert f"{FAST}: can serve" in fastattn.explain("cfsam", maps, num_heads=8)
    assert "heads have 12 channels" in fastattn.explain("partition_attention", torch.ones(1, 4, 24), num_heads=2)
    with fastattn.use_backend(FAST):
        fastattn.warmup(module, [[x.shape for x in maps]])
    assert all(p.grad is None for p in module.parameters())


BAD_OPTIONS = {
    "no levels": ({"in_channels": ()}, "in_channels must be positive"),
    "no channels": ({"in_channels": (8, 0)}, r"in_channels must be positive, .* got \(8, 0\)"),
    "heads": ({"num_heads": 3}, "dim must be divisible by num_heads, got 32 and 3"),
    "no heads": ({"num_heads": 0}, "got 32 and 0"),
    "no parts": ({"num_parts": 0}, "num_parts must be at least 1, got 0"),
    "depth": ({"depth": -1}, "depth must not be negative, got -1"),
    "mlp_ratio": ({"mlp_ratio": 0}, "mlp_ratio must leave hidden channels, got 0 of 32"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        fastattn.CFSAM(**{"in_channels": (8,), "dim": 32, **options})


def replace(maps, i, x):
    return [*maps[:i], x, *maps[i + 1 :]]


BAD_MAPS = {
    "one tensor": (lambda m: m[0], "expected a list of 3 maps, one for each level, got one tensor"),
    "fewer maps": (lambda m: m[:2], "expected a list of 3 maps, one for each level, got 2 maps"),
    "no batch": (lambda m: replace(m, 1, m[1][0]), r"level 1 must have 4 dimensions .* got shape \(12, 4, 3\)"),
    "channels": (lambda m: replace(m, 1, m[0]), "level 1 has 8 channels, expected 12"),
    "batch": (lambda m: replace(m, 2, m[2][:1]), "level 2 has a batch of 1, level 0 has 2"),
    "dtype": (lambda m: replace(m, 1, m[1].double()), "level 1 has dtype torch.float64, level 0 has torch.float32"),
    "device": (lambda m: replace(m, 1, m[1].to("meta")), "level 1 has device meta, level 0 has"),
    "integers": (lambda m: replace(m, 0, m[0].long()), "level 0 must be real floating point, got torch.int64"),
    "empty": (lambda m: replace(m, 0, m[0][:, :, :0]), "level 0 is 0 x 6: there is nothing to attend to"),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_bad_maps(case, backend):
    module, maps = make(SIZES)
    change, message = BAD_MAPS[case]
    with pytest.raises(ValueError, match=message):
        module(change(maps))


def test_more_parts_than_tokens(backend):
    module, maps = make(SIZES, num_parts=56)
    with pytest.raises(ValueError, match="num_parts is 56, more than the 55 tokens"):
        module(maps)


BAD_QKV = {
    "dimensions": (lambda q: (q[0],) * 3, 2, 2, r"q must have 3 dimensions \(B, N, channels\)"),
    "shapes": (lambda q: (q, q[:, :4], q), 2, 2, r"k has shape \(1, 4, 32\), q has \(1, 6, 32\)"),
    "dtypes": (lambda q: (q, q, q.double()), 2, 2, "v is torch.float64 on"),
    "integers": (lambda q: (q.long(),) * 3, 2, 2, "q must be real floating point"),
    "heads": (lambda q: (q,) * 3, 2, 3, "dim must be divisible by num_heads, got 32 and 3"),
    "no parts": (lambda q: (q,) * 3, 0, 2, "num_parts must be at least 1, got 0"),
    "indivisible": (lambda q: (q,) * 3, 4, 2, "num_parts must divide the tokens, got 4 and 6"),
    "too many parts": (lambda q: (q,) * 3, 7, 2, "num_parts is 7, more than the 6 tokens"),
}


@pytest.mark.parametrize("case", BAD_QKV)
def test_bad_attention(case):
    change, parts, heads, message = BAD_QKV[case]
    with pytest.raises(ValueError, match=message):
        partition_attention(*change(torch.ones(1, 6, 32)), parts, heads)


@pytest.mark.skipif(FAST != "triton", reason="the CPU's path takes heads of any size")
def test_heads_that_the_kernels_do_not_take():
    q = torch.ones(1, 6, 24)
    with pytest.raises(RuntimeError, match="heads have 24 channels; the kernels take 16, 32, 64, 128"):
        partition_attention(q, q, q, 2, 1, backend="triton")
