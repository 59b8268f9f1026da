"""The kernels of ACP and CAT: places of maxima, blocks and parts, tensors that are not aligned, traffic and memory."""

import pytest
import torch
import torch.nn.functional as F

import fastattn
from fastattn.interaction.reference import aggressive_conv_pooling, conceptual_attention
from fastattn.lga.reference import resize_nearest
from tests.helpers import DEVICE, DTYPES, FAST, FORMATS, INTERPRETED, by_turns, named

pytest.importorskip("triton")

from benchmarks.machine_code import recorded
from benchmarks.traffic import count
from fastattn.bench.measures import peak_bytes
from fastattn.kernels.acp import call as acp
from fastattn.kernels.acp import conv_pool, pyramid_project, pyramid_project_backward
from fastattn.kernels.cat import call as cat

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(FAST != "triton", reason="runs kernels: TRITON_INTERPRET=1, or a GPU"),
]

NCHW, NHWC = FORMATS
LIMITS = {torch.float32: 1e-5, torch.float16: 3e-3}  # of the relative error


@pytest.fixture
def processors(monkeypatch):
    """Return what pretends that there are so many multiprocessors."""
    plans = [conv_pool.forward_plan, conv_pool.backward_plan, cat.plan]
    plans += [pyramid_project.project_plan, pyramid_project_backward.sums_plan]

    def forget():
        for plan in plans:
            plan.cache_clear()

    def pretend(number):
        forget()
        for module in (conv_pool, pyramid_project, pyramid_project_backward, cat):
            monkeypatch.setattr(module, "processors", lambda device: number)

    yield pretend
    forget()


def random(*shape, dtype=torch.float32, memory_format=None, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cpu").to(DEVICE, dtype)
    return x if memory_format is None else x.contiguous(memory_format=memory_format)


def assert_close(got, expected, limit=LIMITS[torch.float32]):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].shape == tensor.shape, name
        error = torch.linalg.vector_norm(got[name].double() - tensor.double())
        allowed = limit * torch.linalg.vector_norm(tensor.double())
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


# (B, C, H, W, size of the kernel, of the window)
BLOCKS = {NCHW: (1, 1, 18, 16, 3, 2), NHWC: (1, 16, 10, 20, 3, 2)}  # two of cells
POOLS = {
    "two samples, odd": (2, 3, 7, 5, 3, 2),
    "windows of 3, kernel of 5": (1, 2, 7, 8, 5, 3),
    "windows of 4, row by row": (1, 2, 9, 5, 3, 4),
    "no window": (2, 2, 6, 15, 3, 1),
}


def pool(x, channels_last, weight, bias, window, grad_x=None, dtype=None):
    """Return what the kernels compute, by name."""
    y, index = conv_pool.forward(x, channels_last, weight, bias, window, True)
    grad = random(*y.shape, seed=3).to(y.dtype).contiguous(memory_format=NHWC if channels_last else NCHW)
    grad_x = torch.zeros_like(x) if grad_x is None else grad_x
    flat = conv_pool.backward(grad, index, x, channels_last, weight, window, grad_x, True)
    d_weight, d_bias = flat.split([weight.numel(), bias.numel()])
    places = {"y": y, "grad_x": grad_x, "weight": d_weight.view(weight.shape), "bias": d_bias}
    return places, index


def pool_directly(x, weight, bias, window):
    """Return the same in float64, and the places of the maxima."""
    x, weight, bias = (t.double().requires_grad_() for t in (x, weight, bias))
    convolved = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=x.shape[1])
    y, flat = F.max_pool2d(convolved, window, window, ceil_mode=True, return_indices=True)
    grads = torch.autograd.grad(y, (x, weight, bias), random(*y.shape, seed=3).double())
    row, column = flat // x.shape[3], flat % x.shape[3]
    return dict(zip(("y", "grad_x", "weight", "bias"), (y.detach(), *grads), strict=True)), (
        row % window * window + column % window
    )


@pytest.mark.parametrize("number", [1, 132], ids="{} processors".format)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_blocks_of_cells_in_one_program_or_several(memory_format, number, processors):
    processors(number)
    check_pool(*BLOCKS[memory_format], memory_format)


@pytest.mark.parametrize(("case", "memory_format"), by_turns(POOLS), ids=named)
def test_pooled_convolutions(case, memory_format):
    check_pool(*POOLS[case], memory_format)


def check_pool(*case):
    *shape, size, window, memory_format = case
    x = random(*shape, memory_format=memory_format)
    params = random(shape[1], 1, size, size, seed=1), random(shape[1], seed=2)
    got, index = pool(x, memory_format is NHWC, *params, window)
    expected, places = pool_directly(x, *params, window)
    assert_close(got, expected)
    assert index.dtype == torch.uint8
    assert torch.equal(index.long(), places)
    for tensor in (got["y"], index, got["grad_x"]):
        assert tensor.is_contiguous(memory_format=memory_format)


def test_the_gradient_of_x_is_added():
    x, params = random(1, 3, 6, 5), (random(3, 1, 3, 3, seed=1), random(3, seed=2))
    there = random(1, 3, 6, 5, seed=4)
    alone, together = pool(x, False, *params, 2)[0], pool(x, False, *params, 2, there.clone())[0]
    torch.testing.assert_close(together["grad_x"], alone["grad_x"] + there)


def test_equal_maxima_and_a_nan():
    """Whole numbers, whose sums are exact: the first of equal ones is kept, and the last NaN."""
    x = random(1, 2, 8, 8).mul(2).round().clamp(-1, 1)
    x[0, 0, :3, :3] = 1
    weight, bias = torch.ones(2, 1, 1, 1, device=DEVICE), torch.zeros(2, device=DEVICE)
    expected, places = pool_directly(x, weight, bias, 4)
    got, index = pool(x, False, weight, bias, 4)
    assert torch.equal(index.long(), places)
    assert torch.equal(got["y"], expected["y"].float())
    x[0, 1, 5, 4] = x[0, 1, 6, 7] = torch.nan
    expected, places = pool_directly(x, weight, bias, 4)
    got, index = pool(x, False, weight, bias, 4)
    assert torch.equal(index.long(), places)
    assert torch.equal(got["y"].isnan(), expected["y"].isnan())
    assert index[0, 1, 1, 1] == 2 * 4 + 3


def acp_arguments(shape, window=2, layers=2, memory_format=NCHW, dtype=torch.float32, concat=True):
    channels = shape[1]
    x = random(*shape, memory_format=memory_format, dtype=dtype)
    weights = [random(channels, 1, 3, 3, seed=i, dtype=dtype) / 3 for i in range(layers)]
    biases = [random(channels, seed=5 + i, dtype=dtype) for i in range(layers)]
    columns = channels * (layers + 1 if concat else 1)
    proj = random(channels, columns, 1, 1, seed=9, dtype=dtype) / columns**0.5, random(channels, seed=8, dtype=dtype)
    return x, weights, biases, proj, window


def run_acp(x, weights, biases, proj, window, need_x=True, need_params=True):
    size = (x.shape[2], x.shape[3])
    out, levels, indices = acp.forward(x, size, weights, biases, *proj, window, False, True, x.dtype)
    grad = random(*out.shape, seed=7, dtype=x.dtype, memory_format=NCHW if x.is_contiguous() else NHWC)
    grad_x, grads = acp.backward(grad, x, size, levels, indices, weights, proj[0], window, False, need_x, need_params)
    names = [*map(str, range(len(weights))), "projection", "offset"]
    return {"out": out, "grad_x": grad_x, **(dict(zip(names, grads, strict=True)) if need_params else {})}


def run_acp_directly(x, weights, biases, proj, window):
    leaves = [t.double().requires_grad_() for t in (x, *weights, *biases, *proj)]
    count = len(weights)
    convs = list(zip(leaves[1 : 1 + count], leaves[1 + count : 1 + 2 * count], strict=True))
    aggregate = "concat" if proj[0].shape[1] > proj[0].shape[0] else "sum"
    out = aggressive_conv_pooling(leaves[0], convs, tuple(leaves[-2:]), pool_size=window, aggregate=aggregate)
    grads = torch.autograd.grad(out, leaves, random(*out.shape, seed=7).to(x.dtype).double())
    d_weights, d_biases = grads[1 : 1 + count], grads[1 + count : 1 + 2 * count]
    layers = {str(i): torch.cat([w.flatten(), b]) for i, (w, b) in enumerate(zip(d_weights, d_biases, strict=True))}
    return {"out": out.detach(), "grad_x": grads[0], **layers, "projection": grads[-2], "offset": grads[-1]}


@pytest.mark.parametrize(("memory_format", "concat"), [(NHWC, True), (NCHW, False)], ids=["concat", "sum"])
def test_maps_that_are_not_nested(memory_format, concat):
    """Tiles whose sources begin between two of their neighbours', of maps 17, 6 and 2 pixels high."""
    arguments = acp_arguments((1, 4, 17, 19), 3, memory_format=memory_format, concat=concat)
    assert_close(run_acp(*arguments), run_acp_directly(*arguments))


def test_acp_in_half_precision():
    arguments = acp_arguments((1, 8, 7, 6), memory_format=NHWC, dtype=torch.float16)
    assert_close(run_acp(*arguments), run_acp_directly(*arguments), LIMITS[torch.float16])


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)], ids=["x", "parameters", "none"])
def test_only_the_gradients_that_are_needed(need):
    arguments = acp_arguments((1, 3, 5, 6))
    got, expected = run_acp(*arguments, *need), run_acp_directly(*arguments)
    if not need[0]:
        assert got.pop("grad_x").numel() == 0
    assert len(got) == 1 + need[0] + 4 * need[1]
    assert_close(got, {name: expected[name] for name in got})


@pytest.mark.parametrize("number", [1, 132], ids="{} processors".format)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_sums_over_the_pixels_of_a_source_in_one_part_or_several(memory_format, number, processors):
    """Levels that are not nested, of which the last is as large as the one before it."""
    processors(number)
    sizes = (17, 19), (6, 7), (4, 3), (4, 3)
    grad, *like = (random(8, 2, *size, seed=i, memory_format=memory_format) for i, size in enumerate(sizes))
    sums = pyramid_project_backward.resized_sums(grad, sizes[0], memory_format is NHWC, like)
    for level, got in zip(like, sums, strict=True):
        level = level.double().requires_grad_()
        expected = torch.autograd.grad(resize_nearest(level, *sizes[0]), level, grad.double())
        assert_close({"sums": got}, {"sums": expected[0]})


def off(t):
    """Return a copy that does not start where 128 bits can be read at a time."""
    storage = t.new_empty(t.numel() + 1)
    aside = storage[1:].view(t.shape).copy_(t)
    assert aside.data_ptr() % 16
    return aside


def test_tensors_that_are_not_aligned():
    x, weights, biases, proj, window = acp_arguments((1, 4, 6, 8))
    expected = run_acp_directly(x, weights, biases, proj, window)
    shifted = off(x), list(map(off, weights)), list(map(off, biases)), tuple(map(off, proj))
    assert_close(run_acp(*shifted, window), expected)
    arguments = cat_arguments(1, 20, 16, 5)
    assert_close(run_cat(*map(off, arguments)), run_cat_directly(*arguments))


def cat_arguments(batch, tokens, channels, concepts, dtype=torch.float32):
    matrix = random(2, channels, channels, seed=2) / channels**0.5
    vector = random(2, channels, seed=3)
    score = random(concepts, channels, seed=1) / channels**0.5
    params = score, matrix[0], vector[0], matrix[1], vector[1]
    return random(batch, tokens, channels).to(dtype), *(p.to(dtype).contiguous() for p in params)


def run_cat(x, *params):
    out, *saved = cat.forward(x, *params, True, x.dtype)
    score, value, _, weight, _ = params
    grads = cat.backward(random(*x.shape, seed=4).to(x.dtype), x, score, value, weight, *saved)
    return dict(zip(("out", "x", "score", "value", "bias", "weight", "offset"), (out, *grads), strict=True))


def run_cat_directly(*arguments):
    leaves = [t.double().requires_grad_() for t in arguments]
    x, score, value, value_bias, weight, bias = leaves
    out = conceptual_attention(x, score, (value, value_bias), (weight, bias))
    grads = torch.autograd.grad(out, leaves, random(*x.shape, seed=4).to(arguments[0].dtype).double())
    return dict(zip(("out", "x", "score", "value", "bias", "weight", "offset"), (out.detach(), *grads), strict=True))


@pytest.mark.parametrize("number", [1, 132], ids="{} processors".format)
def test_tokens_in_parts(number, processors):
    processors(number)
    arguments = cat_arguments(1, 150, 8, 20)
    got, expected = run_cat(*arguments), run_cat_directly(*arguments)
    assert_close(got, expected)
    ready = cat._prepare(*arguments[:2], True, arguments[-1], arguments[0])
    assert ready.parts == {1: 2, 132: 3}[number]


def test_several_blocks_of_concepts_in_one_pass():
    arguments = cat_arguments(1, 20, 8, 70)
    assert_close(run_cat(*arguments), run_cat_directly(*arguments))


def test_cat_in_half_precision():
    arguments = cat_arguments(1, 50, 24, 9, torch.float16)
    assert_close(run_cat(*arguments), run_cat_directly(*arguments), LIMITS[torch.float16])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what is masked overflows
def test_scores_far_below_zero_leave_the_gradients_finite():
    """A masked score is zero, which lies far above all others here."""
    x, score, *params = cat_arguments(1, 17, 8, 5)
    got = run_cat(x.abs(), -60 * score.abs(), *params)
    assert all(t.isfinite().all() for t in got.values())


@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
def test_opcheck(save):
    check, ops = torch.library.opcheck, torch.ops.fastattn
    x, weights, biases, proj, window = acp_arguments((1, 3, 4, 5))
    with torch.no_grad():
        for source, residual in [(x, False)] if save else [(random(1, 22, 3), True)]:
            arguments = source, 4, 5, weights, biases, *proj, window, residual
            check(ops.acp_forward.default, (*arguments, save))
            out, levels, indices = ops.acp_forward(*arguments, save)
            if save:
                backward = out, source, 4, 5, levels, indices, weights, proj[0], window, residual
                check(ops.acp_backward.default, (*backward, True, True))
        x, *params = cat_arguments(1, 6, 4, 3)
        check(ops.cat_forward.default, (x, *params, save))
        out, *saved = ops.cat_forward(x, *params, save)
        if save:
            score, value, _, weight, _ = params
            check(ops.cat_backward.default, (out, x, score, value, weight, *saved))


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_launches_bind_parameters_in_the_kernels_order(dtype):
    """Which a launch after the first does by position, and the interpreter never."""
    with recorded() as made:
        for memory_format in FORMATS:
            run_acp(*acp_arguments((2, 16, 7, 9), memory_format=memory_format, dtype=dtype))
        run_cat(*cat_arguments(2, 40, 24, 5, dtype))
    assert len(made) == 2 * (2 + 1 + 1 + 2 + 4) + 6
    for launch, *_ in made:
        assert launch.kernel.arg_names == [*launch.tensors, *launch.sizes, *launch.constants], launch.name


UNSERVED = {
    "layers": (lambda: fastattn.AggressiveConvPooling(2, 5, pool_size=1), (1, 2, 3, 3), "5 layers with windows of 1"),
    "windows": (lambda: fastattn.AggressiveConvPooling(2, 1, pool_size=17), (1, 2, 3, 3), "windows of 17; .* 4 and 16"),
    "channels": (lambda: fastattn.ConceptualAttention(800, 2), (1, 3, 800), "tokens of 800 channels; .* up to 768"),
}


@pytest.mark.parametrize("case", UNSERVED)
def test_what_the_kernels_do_not_serve(case):
    build, shape, message = UNSERVED[case]
    module, x = build().to(DEVICE), random(*shape)
    with fastattn.use_backend("triton"), pytest.raises(RuntimeError, match=message):
        module(x)
    assert "can serve" not in fastattn.explain(module, x).split("triton: ")[1].split("\n")[0]


counted = pytest.mark.skipif(not INTERPRETED, reason="counts under TRITON_INTERPRET=1")


def moved(records, leave_out):
    """Return the bytes of all launches but of some tensors, which stay in the cache."""
    return sum(
        size for record in records for part in (record.read, record.written) for name, size in part.items()
        if name not in leave_out
    )  # fmt: skip


@counted
@pytest.mark.parametrize(
    ("channels", "side", "memory_format"), [(16, 56, NHWC), (16, 14, NHWC), (2, 28, NCHW), (2, 14, NCHW)], ids=named
)
def test_traffic_of_acp(channels, side, memory_format, processors):
    """As at batch 32 on a GPU that is larger by as much."""
    processors(1)
    x, weights, biases, proj, window = acp_arguments((1, channels, side, side), memory_format=memory_format)
    with count() as records:
        acp.forward(x, (side, side), weights, biases, *proj, window, False, False, x.dtype)
    names = [record.kernel for record in records]
    assert names == ["conv_pool_kernel", "conv_pool_kernel", "pyramid_project_kernel"]
    size = x.numel() * x.element_size()
    parameters = ("weights", "weight", "bias")
    assert moved(records[:2], parameters) <= 1.7 * size
    assert moved(records, parameters) <= 4.2 * size
    assert records[2].written == {"out": size}
    assert not records[0].written["index"]


@counted
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_the_gradient_is_read_once_for_all_levels_that_are_nested(memory_format):
    grad = random(1, 3, 20, 12, memory_format=memory_format)
    like = [random(1, 3, *size, memory_format=memory_format) for size in ((10, 6), (5, 3))]
    with count() as records:
        pyramid_project_backward.resized_sums(grad, (20, 12), memory_format is NHWC, like)
    (record,) = records
    assert record.programs == 5
    assert record.read == {"grad": grad.nbytes}
    assert sum(record.written.values()) == sum(level.nbytes for level in like)


@counted
def test_traffic_of_cat(processors):
    """Tokens are read twice forward; backward they and their gradient three times."""
    processors(1)
    arguments = cat_arguments(1, 96, 8, 12)
    x, score, value, _, weight, _ = arguments
    with count() as forward:
        _, *saved = cat.forward(*arguments, True, x.dtype)
    with count() as backward:
        cat.backward(x, x, score, value, weight, *saved)
    size = x.numel() * x.element_size()
    for records, reads, writes, written in ((forward, 2, 1, "out"), (backward, 3, 1, "grad_x")):
        assert sum(record.read["x"] for record in records) == reads * size
        assert sum(record.written[written] for record in records) == writes * size
    assert [record.kernel for record in forward] == ["gather_kernel", "merge_kernel", "spread_kernel"]
    assert len(backward) == 3


@counted
def test_memory_of_cat_does_not_grow_with_tokens_times_concepts(processors):
    processors(1)

    def growth(run, concepts):
        few, many = (cat_arguments(1, tokens, 8, concepts) for tokens in (64, 128))
        return peak_bytes(lambda: run(*many)) - peak_bytes(lambda: run(*few))

    assert growth(run_cat, 64) - growth(run_cat, 16) < 64 * 48
    assert growth(run_cat_directly, 64) - growth(run_cat_directly, 16) > 8 * 64 * 48  # so that the measure tells


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=named)
def test_wider_tokens_than_parameters(dtype):
    """As under autocast: products are formed in the parameters' dtype, and the residual is as wide as the tokens."""
    x, *params = cat_arguments(1, 20, 16, 5)
    narrow = [p.to(dtype) for p in params]
    exact = run_cat_directly(x, *(p.float() for p in narrow))["out"]
    out = cat.forward(x, *narrow, False, torch.float32)[0]
    assert out.dtype == torch.float32
    assert torch.linalg.vector_norm(out - exact) < 1e-2 * torch.linalg.vector_norm(exact - x)
