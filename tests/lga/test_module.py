"""Local-Global Attention: the fast paths against the float64 reference, and what a user can do wrong."""

import copy
import itertools

import pytest
import torch

import fastattn
from fastattn.lga.reference import CONTRACTIONS, attend
from tests.helpers import (
    DEVICE,
    DTYPES,
    FAST,
    FORMATS,
    INTERPRETED,
    check_together,
    draw,
    few_interpreted,
    named,
    randomize,
    run,
    slow_interpreted,
    thin,
)

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("few_programs")]

# (B, D, heads, H, W, options)
SMALL = {"local_kernel_sizes": (1, 3), "global_kernel_size": 5, "height": 4, "width": 3, "num_scales": 2}
FEW = {  # all that is interpreted, where each takes seconds
    "small kernels": (2, 8, 4, 5, 6, SMALL),
    "small kernels, three heads": (1, 6, 3, 4, 5, SMALL),
    "small kernels, released": (2, 8, 4, 5, 6, {**SMALL, "contraction": "released"}),
    "small kernels, spatial": (2, 8, 4, 5, 6, {**SMALL, "contraction": "spatial"}),
    "small kernels, one pixel, local branch": (1, 4, 2, 1, 1, {**SMALL, "branches": "local"}),
}
CASES = FEW | {
    "default": (2, 24, 6, 14, 14, {}),
    "heads not divisible by three": (2, 32, 4, 9, 11, {}),
    "one head": (1, 8, 1, 7, 9, {}),
    "two heads of twelve": (2, 24, 2, 8, 8, {}),
    "a head per channel": (2, 6, 6, 9, 8, {}),
    "five heads of three": (1, 15, 5, 6, 7, {}),
    "one pixel": (2, 12, 3, 1, 1, {}),
    "one row": (2, 12, 3, 1, 9, {}),
    "map smaller than the encoding and the kernels": (1, 12, 3, 5, 4, {}),
    "map larger than the encoding": (1, 8, 2, 23, 19, {"height": 5, "width": 7}),
    "one local kernel": (1, 12, 3, 9, 9, {"local_kernel_sizes": (5,)}),
    "kernels of one": (1, 12, 3, 9, 9, {"local_kernel_sizes": (1, 3), "global_kernel_size": 1}),
    "one scale": (1, 12, 3, 9, 9, {"num_scales": 1}),
    "five scales": (1, 12, 3, 18, 17, {"num_scales": 5}),
    "long rows": (1, 12, 3, 2, 1000, {}),
    "local branch": (2, 12, 4, 9, 9, {"branches": "local"}),
    "global branch": (2, 12, 4, 9, 9, {"branches": "global"}),
    "released": (2, 24, 6, 9, 10, {"contraction": "released"}),
    "released, one head, local": (1, 8, 1, 9, 10, {"contraction": "released", "branches": "local"}),
    "spatial": (2, 24, 6, 9, 10, {"contraction": "spatial"}),
    "spatial, one head, local": (1, 8, 1, 9, 10, {"contraction": "spatial", "branches": "local"}),
}


def make(dim, heads, dtype=torch.float32, seed=0, **options):
    return randomize(fastattn.LocalGlobalAttention(dim, heads, **options), seed).to(DEVICE, dtype)


def make_case(case, dtype=torch.float32, memory_format=torch.contiguous_format, seed=0, **changed):
    batch, dim, heads, height, width, options = CASES[case]
    x = draw(batch, dim, height, width, dtype=dtype, memory_format=memory_format, seed=seed + 1)
    return make(dim, heads, dtype, seed, **options | changed), x


def check_draws(count, case, **options):
    """Assert the accuracy of several draws together, and return the first: of a gradient of a single number, as of an
    alpha, rounding may leave eager no error at all in one of them.
    """
    return check_together([make_case(case, **options, seed=seed) for seed in range(count)], more_orders=True)


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("case", FEW if INTERPRETED else CASES)
def test_numbers(case, memory_format, fast):
    got = check_draws(1 if INTERPRETED else 4, case, memory_format=memory_format)
    for name in ("out", "grad_x"):
        assert got[name].is_contiguous(memory_format=memory_format)


@pytest.mark.skipif(FAST != "native", reason="Triton's kernels take seven scales")
@pytest.mark.parametrize("num_scales", range(3, 16))
def test_every_number_of_scales(num_scales, fast):
    """The more of them, the more of z is alike in all pixels, and its errors too, which then add up in the scores."""
    check_draws(4, "five scales", num_scales=num_scales)


@pytest.mark.parametrize("dtype", few_interpreted(DTYPES[1:]), ids=named)
@pytest.mark.parametrize("case", thin(["small kernels", "small kernels, released", "small kernels, spatial"]))
def test_narrow_dtypes(case, dtype, fast):
    if INTERPRETED and (case, dtype) == ("small kernels", torch.bfloat16):
        pytest.skip("of 480 numbers of 8 bits eager's error is chance, and more are interpreted in minutes")
    check_draws(4, case, dtype=dtype)


def test_queries_and_keys_have_no_gradient_under_released(backend):
    module, x = make_case("small kernels, released")
    gradients = run(module, x, torch.randn_like(x), backend)
    largest = gradients["out_conv.weight"].abs().max()
    for name in ("local_convs.0.1.weight", "global_conv.1.bias"):
        queries_and_keys, values = gradients[name].split([2 * 8, 8])
        assert queries_and_keys.abs().max() < 1e-5 * largest
        assert values.abs().max() > 0


def test_contractions_share_their_parameters(backend):
    modules = [make(24, 6, contraction=name) for name in CONTRACTIONS]
    for module in modules[1:]:
        module.load_state_dict(modules[0].state_dict())
    x = draw(1, 24, 9, 9)
    outs = [module(x) for module in modules]
    for one, other in itertools.combinations(outs, 2):
        assert not torch.allclose(one, other)


def test_spatial_attention_is_among_the_pixels_of_a_head():
    """Pixel by pixel: the softmax of its query's products with all keys weighs their values."""
    heads, d, height, width = 2, 3, 4, 5
    qkv = draw(1, 3 * heads * d, height, width, dtype=torch.float64)
    q, k, v = qkv[0].flatten(1).view(3, heads, d, height * width)
    found = attend(qkv, heads, "spatial")[0].flatten(1).view(heads, d, height * width)
    for head, pixel in itertools.product(range(heads), range(height * width)):
        weights = torch.stack([q[head, :, pixel] @ k[head, :, j] for j in range(height * width)]) / d**0.5
        expected = (weights.softmax(0) * v[head]).sum(1)
        torch.testing.assert_close(found[head, :, pixel], expected)


@pytest.mark.skipif(INTERPRETED or DEVICE != "cpu", reason="of the CPU's memory")
def test_spatial_attention_has_no_matrix_of_all_pairs_of_pixels(fast):
    """Of 64 x 64 pixels and 4 heads it would be 268 MB."""
    module, x = make(8, 4, contraction="spatial", branches="global"), draw(1, 8, 64, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        module(x)
    assert max(event.cpu_memory_usage for event in profile.events()) < 32 << 20


def test_a_contraction_that_does_not_exist_is_refused_by_the_functional():
    module = make(8, 2)
    with pytest.raises(ValueError, match="contraction must be one of paper, released, spatial, got 'fast'"):
        fastattn.functional.local_global_attention(
            draw(1, 8, 5, 5), *module.operands(), num_heads=2, contraction="fast"
        )


@pytest.mark.parametrize(("branches", "absent"), [("local", "global"), ("global", "local")])
def test_what_is_left_out_has_no_parameters(branches, absent):
    names = [name for name, _ in fastattn.LocalGlobalAttention(12, 3, branches=branches).named_parameters()]
    assert not [name for name in names if absent in name]
    assert [name for name in names if branches in name]


@pytest.mark.parametrize(("dim", "heads"), [(24, 6), (24, 12), (128, 8), (256, 16)])
def test_parameters_as_counted_by_the_author(dim, heads):
    module = fastattn.LocalGlobalAttention(dim, heads)
    assert sum(p.numel() for p in module.parameters()) == 4 * dim**2 + 12 * dim**2 // heads + 454 * dim + 6


def test_what_is_saved_is_x_and_z(fast):
    module, x = make(8, 4, **SMALL), draw(2, 8, 9, 9).requires_grad_()
    held, parameters = {}, {p.data_ptr() for p in module.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), fastattn.use_backend(fast):
        module(x)
    assert sum(held.values()) <= 3 * x.nbytes


def test_the_same_call_gives_the_same_bits(fast):
    module, x = make_case("small kernels")
    first, second = (run(module, x, torch.ones_like(x), fast) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("to", few_interpreted([torch.bfloat16, torch.float16]), ids=named)
def test_autocast_gives_eagers_dtype(to, fast):
    module, x = make_case("small kernels")
    with torch.autocast(DEVICE, to):
        with fastattn.use_backend("reference"):
            eager = module(x)
        with fastattn.use_backend(fast):
            out = module(x.requires_grad_())
    assert out.dtype == eager.dtype == to
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize(
    "learning", few_interpreted([("position_encoding", "local_convs.1.1.weight"), ("x",), ("out_conv.bias",)])
)
def test_frozen_parts(learning, backend):
    module, x = make_case("small kernels")
    expected = run(module, x, torch.ones_like(x), backend)
    for name, p in module.named_parameters():
        p.requires_grad_(name in learning)
    module(x.requires_grad_("x" in learning)).sum().backward()
    for name, leaf in {"grad_x": x, **dict(module.named_parameters())}.items():
        wanted = name in learning or (name == "grad_x" and "x" in learning)
        assert (leaf.grad is not None) == wanted, name
        if wanted:
            torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-4, atol=1e-4)


@slow_interpreted
def test_compile_fullgraph(backend):
    torch.compiler.reset()
    module, x = make_case("small kernels")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected, got = run(module, x, torch.ones_like(x), backend), run(compiled, x, torch.ones_like(x), backend)
    for name, tensor in expected.items():
        torch.testing.assert_close(got.get(name, got.get(f"_orig_mod.{name}")), tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", few_interpreted([False, True]), ids=["not strict", "strict"])
def test_export(strict, backend):
    module, x = make_case("small kernels")
    with torch.no_grad():
        program = torch.export.export(module.eval(), (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), module(x))


def test_copies_and_repr(backend):
    module, x = make_case("small kernels")
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    assert "8, 4, local_kernel_sizes=(1, 3)" in repr(twin)
    assert f"{backend}: can serve" in fastattn.explain(module, x)


@slow_interpreted
def test_double_backward_raises(fast):
    module, x = make_case("small kernels")
    x.requires_grad_()
    with fastattn.use_backend(fast), pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(torch.autograd.grad(module(x).sum(), x, create_graph=True)[0].square().sum(), x)


def test_an_empty_batch(backend):
    module, x = make_case("small kernels")
    assert module(x[:0]).shape == (0, *x.shape[1:])


BAD_OPTIONS = {
    "heads": ({"num_heads": 5}, "embed_dim must be divisible by num_heads, got 24 and 5"),
    "no heads": ({"num_heads": 0}, "got 24 and 0"),
    "even local kernel": ({"local_kernel_sizes": (3, 4)}, r"kernel sizes must be odd, got local_kernel_sizes=\(3, 4\)"),
    "even global kernel": ({"global_kernel_size": 10}, "kernel sizes must be odd, .* global_kernel_size=10"),
    "no kernel": ({"local_kernel_sizes": ()}, "local_kernel_sizes must name at least one kernel"),
    "contraction": ({"contraction": "fast"}, "contraction must be one of paper, released, spatial, got 'fast'"),
    "branches": ({"branches": "all"}, "branches must be one of both, local, global, got 'all'"),
    "encoding": ({"height": 0}, "height and width must be positive, got 0 and 14"),
    "scales": ({"num_scales": 0}, "num_scales must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        fastattn.LocalGlobalAttention(**{"embed_dim": 24, "num_heads": 6, **options})


BAD_INPUTS = {
    "dimensions": (lambda x: x[0], r"x must have 4 dimensions \(B, C, H, W\), got shape \(8, 5, 6\)"),
    "channels": (lambda x: x[:, :6], "x has 6 channels, expected 8"),
    "empty": (lambda x: x[:, :, :0], "x is 0 x 6: there is nothing to attend to"),
    "integers": (lambda x: x.long(), "x must be real floating point, got torch.int64"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(case, backend):
    module, x = make_case("small kernels")
    change, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        module(change(x))


WRONG_CHECKPOINTS = {
    "height": {"height": 7},
    "width": {"width": 9},
    "embed_dim": {"embed_dim": 12},
    "num_heads": {"num_heads": 3},
    "local_kernel_sizes": {"local_kernel_sizes": (3, 5, 9)},
    "global_kernel_size": {"global_kernel_size": 9},
    "num_scales": {"num_scales": 2},
}


@pytest.mark.parametrize("argument", WRONG_CHECKPOINTS)
def test_a_checkpoint_of_another_shape_names_the_argument(argument):
    sizes = {"embed_dim": 24, "num_heads": 6}
    state = fastattn.LocalGlobalAttention(**{**sizes, **WRONG_CHECKPOINTS[argument]}).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing|Unexpected") as raised:
        fastattn.LocalGlobalAttention(**sizes).load_state_dict(state)
    assert f"{argument}=" in str(raised.value).rpartition("made for")[2]
