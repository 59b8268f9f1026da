"""The compiled CPU path against the float64 reference: output and every gradient by name."""

import copy
import gc
import os
import statistics
from pathlib import Path

import pytest
import torch

import fastattn

from .helpers import DTYPES, FORMATS, check, draw, make, named, run

pytestmark = pytest.mark.usefixtures("native")

# id: (B, C, H, W, options)
CASES = {
    "default": (2, 32, 14, 14, {}),
    "least channels": (2, 4, 8, 9, {}),
    "group of two": (3, 8, 7, 8, {}),
    "group of five, no vector's multiple": (2, 20, 9, 16, {}),
    "group of nine": (2, 36, 15, 7, {}),
    "twelve per group, odd map": (2, 48, 23, 31, {}),
    "fifteen per group": (1, 60, 13, 11, {}),
    "144 channels, one pixel left": (2, 144, 7, 7, {}),
    "channels past one vector block": (1, 272, 7, 9, {}),
    "one row": (2, 8, 1, 19, {"window_size": 1}),
    "one column": (2, 8, 17, 1, {"window_size": 1}),
    "one pixel": (3, 16, 1, 1, {"window_size": 1}),
    "two by two, window one": (2, 16, 2, 2, {"window_size": 1}),
    "shorter than every kernel": (2, 16, 2, 3, {"window_size": 2}),
    "window as large as the map": (2, 16, 9, 9, {"window_size": 9}),
    "window fits one way only once": (2, 16, 9, 40, {"window_size": 8}),
    "many small windows": (1, 16, 33, 34, {"window_size": 2}),
    "window leaves a remainder": (2, 16, 20, 23, {"window_size": 6}),
    "wide map": (1, 8, 7, 130, {}),
    "tall map": (1, 8, 130, 7, {}),
    "56 by 56": (1, 16, 56, 56, {}),
    "global average": (2, 32, 12, 15, {"window_size": -1}),
    "global average, heads": (2, 32, 12, 15, {"window_size": -1, "head_num": 4}),
    "global average, whatever the mode": (2, 16, 5, 6, {"window_size": -1, "down_sample_mode": "max_pool"}),
    "heads": (2, 48, 14, 14, {"head_num": 6}),
    "heads of three channels": (2, 24, 14, 15, {"head_num": 8}),
    "a head per channel": (2, 16, 14, 14, {"head_num": 16}),
    "bias": (2, 24, 14, 14, {"qkv_bias": True}),
    "bias, one pixel left": (2, 64, 7, 7, {"qkv_bias": True}),
    "bias, heads, odd map": (2, 24, 15, 22, {"qkv_bias": True, "head_num": 2, "window_size": 4}),
    "max pooling": (2, 16, 15, 17, {"down_sample_mode": "max_pool", "window_size": 4}),
    "max pooling, heads, bias": (
        2,
        24,
        14,
        21,
        {"down_sample_mode": "max_pool", "head_num": 3, "qkv_bias": True},
    ),
    "max pooling, window one": (1, 8, 5, 6, {"down_sample_mode": "max_pool", "window_size": 1}),
    "softmax gates": (2, 32, 14, 15, {"gate_layer": "softmax"}),
    "softmax gates, max pooling": (2, 16, 9, 10, {"gate_layer": "softmax", "down_sample_mode": "max_pool"}),
    "softmax gates, global average": (2, 16, 9, 10, {"gate_layer": "softmax", "window_size": -1}),
    "kernels of one": (2, 16, 8, 9, {"group_kernel_sizes": (1, 1, 1, 1)}),
    "kernels out of order": (2, 16, 10, 9, {"group_kernel_sizes": (9, 1, 5, 3)}),
    "kernels longer than the map": (2, 16, 8, 9, {"group_kernel_sizes": (17, 19, 21, 31)}),
    "batch of five": (5, 16, 8, 10, {}),
    "larger than a megabyte": (2, 72, 70, 61, {}),
    "larger than a megabyte, narrow": (2, 72, 600, 7, {}),
}
ACCEPTED = {
    "smsa": {"group_kernel_sizes", "gate_layer"},
    "pcsa": {"head_num", "window_size", "qkv_bias", "down_sample_mode", "gate_layer"},
}
OPERATIONS = ("scsa", "smsa", "pcsa")


def make_case(name, case, dtype=torch.float32, memory_format=torch.contiguous_format):
    """Return the module and the input of a case; the parts take those of its options that they know."""
    *shape, options = CASES[case]
    known = ACCEPTED.get(name, options.keys())
    options = {key: value for key, value in options.items() if key in known}
    return make(name, shape[1], dtype=dtype, **options), draw(
        *shape, dtype=dtype, memory_format=memory_format
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("case", CASES)
def test_numbers(case, name, memory_format, dtype):
    module, x = make_case(name, case, dtype, memory_format)
    got = check(module, x)
    assert got["out"].stride() == x.stride()
    assert got["grad_x"].stride() == x.stride()


@pytest.fixture
def isa(native, request):
    """Run a test on one instruction set, where this CPU has it."""
    extension = native.extension()
    if request.param not in extension.isa_levels():
        pytest.skip(f"this CPU has no {request.param}")
    before = extension.isa()
    extension.set_isa(request.param)
    yield request.param
    extension.set_isa(before)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    "case",
    [
        "twelve per group, odd map",
        "144 channels, one pixel left",
        "least channels",
        "max pooling, heads, bias",
        "softmax gates",
        "bias, heads, odd map",
    ],
)
def test_every_instruction_set(case, name, memory_format, dtype, isa, native):
    assert native.extension().isa() == isa
    check(*make_case(name, case, dtype, memory_format))


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize(
    "options", [{}, {"window_size": -1, "head_num": 2}, {"down_sample_mode": "max_pool"}], ids=str
)
def test_threads_share_samples_and_split_them(options, memory_format, batch, threads):
    module = make("scsa", 24, **options)
    x = draw(batch, 24, 15, 16, memory_format=memory_format)
    alone = check(module, x)
    torch.set_num_threads(threads)
    together = check(module, x)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_same_call_gives_the_same_bits(name, threads):
    torch.set_num_threads(threads)
    module, x = make_case(name, "twelve per group, odd map")
    first, second = (run(module, x, torch.ones_like(x), "native") for _ in range(2))
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.parametrize(
    "shape", [(2, 32, 14, 14), (2, 32, 7, 7)], ids=["four pixels left", "one pixel left"]
)
@pytest.mark.parametrize("scale", [30.0, 1e3, 1e6], ids=lambda scale: f"logits times {scale:g}")
def test_large_logits_need_the_softmax_maximum(shape, scale):
    module, x = make("pcsa", 32), draw(*shape)
    with torch.no_grad():
        module.q.weight.mul_(scale)
        module.k.weight.mul_(scale**0.5)
        grad_out = torch.ones_like(x)
    truth = run(make_double(module), x.double(), grad_out.double(), "reference")
    got = run(module, x, grad_out, "native")
    eager = run(module, x, grad_out, "reference")
    assert all(tensor.isfinite().all() for tensor in got.values())
    for name in ("out", "grad_x"):
        error, eager_error = ((r[name] - truth[name]).norm() / truth[name].norm() for r in (got, eager))
        assert error <= max(1e-5, 2 * eager_error), name


@pytest.mark.parametrize("options", [{}, {"head_num": 2, "qkv_bias": True}], ids=["one head", "two heads, bias"])
@pytest.mark.parametrize("height", [7, 14, 21, 28], ids=lambda height: f"{height // 7 * 2} pixels left")
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.1, 0.5], ids=lambda scale: f"logits times {scale:g}")
def test_small_logits_are_expanded(height, scale, options):
    """Sums over channels by moments: their degree follows the largest possible logit, up to direct sums."""
    module, x = make("pcsa", 72, **options), draw(3, 72, height, 15)
    with torch.no_grad():
        for parameter in (module.q.weight, module.q.bias):
            if parameter is not None:
                parameter.mul_(scale)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check(module, x)


def make_double(module):
    """Return a float64 copy."""
    return copy.deepcopy(module).double()


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("shape", [(1, 8, 14, 2), (1, 8, 2, 2), (2, 12, 3, 4)], ids=str)
def test_few_values_per_group_err_as_eager_does(shape, gate):
    """GroupNorm over a few values cancels most of a gradient, so one draw says little: the median of many does."""
    errors = {}
    for seed in range(31):
        module, x = make("smsa", shape[1], gate_layer=gate, seed=seed), draw(*shape, seed=seed)
        grad_out = draw(*shape, seed=100 + seed)
        truth = run(make_double(module), x.double(), grad_out.double(), "reference")
        runs = run(module, x, grad_out, "native"), run(module, x, grad_out, "reference")
        for name, exact in truth.items():
            pair = [((got[name] - exact).norm() / exact.norm()).item() for got in runs]
            errors.setdefault(name, []).append(pair)
    for name, pairs in errors.items():
        native, eager = (statistics.median(column) for column in zip(*pairs, strict=True))
        assert native <= 2 * eager, f"{name}: median error {native:.2e}, eager's {eager:.2e}"


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e4], ids=lambda scale: f"x times {scale:g}")
def test_scale_of_the_input(name, scale):
    check(make(name, 16), draw(2, 16, 15, 14) * scale)


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize(
    "options", [{}, {"down_sample_mode": "max_pool"}, {"window_size": -1}, {"head_num": 4}], ids=str
)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_propagates_as_in_eager(bad, name, options, dtype, memory_format):
    module = make(name, 16, dtype=dtype, **(options if name != "smsa" else {}))
    x = draw(3, 16, 15, 14, dtype=dtype, memory_format=memory_format)
    x[1, 5, 3, 4] = bad
    grad_out = draw(3, 16, 15, 14, dtype=dtype, seed=3)
    got, eager = (run(module, x, grad_out, backend) for backend in ("native", "reference"))
    assert torch.equal(got["out"].isnan(), eager["out"].isnan())
    assert torch.equal(got["out"].isinf(), eager["out"].isinf())
    for key in got:  # whether a gradient meets inf - inf depends on the order of its sums
        assert torch.equal(got[key].isfinite(), eager[key].isfinite()), key


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_remainder_that_is_not_finite_counts(name):
    """Rows and columns past the last window are not pooled, but they are in the axis means."""
    module = make(name, 16)
    x = draw(2, 16, 15, 16)
    x[0, 0, 14, 15] = float("nan")
    got, eager = (run(module, x, torch.ones_like(x), backend) for backend in ("native", "reference"))
    for key in got:
        assert torch.equal(got[key].isnan(), eager[key].isnan()), key


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_ties_in_max_pooling_pass_the_gradient_where_torch_does(memory_format):
    module = make("pcsa", 16, down_sample_mode="max_pool", window_size=3)
    x = draw(2, 16, 9, 10, memory_format=memory_format).round()
    check(module, x)


STRIDED = {
    "every second column": lambda: draw(2, 16, 14, 28)[..., ::2],
    "channels sliced": lambda: draw(2, 32, 14, 14)[:, 8:24],
    "channels sliced from channels_last": lambda: draw(2, 32, 14, 14, memory_format=torch.channels_last)[
        :, 8:24
    ],
    "batch expanded": lambda: draw(1, 16, 14, 14).expand(3, -1, -1, -1),
    "pixels expanded": lambda: draw(2, 16, 1, 1).expand(-1, -1, 14, 14),
    "height and width swapped": lambda: draw(2, 16, 14, 14).transpose(2, 3),
    "batch and channels swapped": lambda: draw(16, 2, 14, 14).transpose(0, 1),
    "cropped": lambda: draw(2, 16, 20, 20)[:, :, 3:17, 3:17],
    "offset in its storage": lambda: draw(3, 16, 14, 14)[1:],
    "unaligned": lambda: draw(1, 1, 1, 16 * 14 * 14 + 1).flatten()[1:].view(1, 16, 14, 14),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("case", STRIDED)
def test_strides(case, name):
    check(make(name, 16), STRIDED[case]())


@pytest.mark.parametrize("name", OPERATIONS)
def test_strides_that_two_formats_share(name):
    one_image = draw(1, 16, 14, 14, memory_format=torch.channels_last)
    one_pixel = draw(4, 16, 1, 1, memory_format=torch.channels_last)
    options = {} if name == "smsa" else {"window_size": 1}
    for x in (one_image, one_pixel):
        out = make(name, 16, **options)(x)
        assert out.stride() == x.stride()
        check(make(name, 16, **options), x)


def test_one_channel():
    """Such a map is contiguous in both formats."""
    for memory_format in FORMATS:
        check(make("pcsa", 1), draw(2, 1, 14, 14, memory_format=memory_format))


@pytest.mark.parametrize("layout", ["expanded", "sliced", "another format"])
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_gradients_that_arrive_strided(memory_format, layout):
    module, x = make("scsa", 16), draw(2, 16, 14, 14, memory_format=memory_format)
    grad_out = {
        "expanded": torch.ones(()).expand(x.shape),
        "sliced": draw(2, 16, 14, 28)[..., ::2],
        "another format": draw(2, 16, 14, 14).contiguous(memory_format=torch.channels_last).transpose(2, 3),
    }[layout]
    got, dense = (run(module, x, grad, "native") for grad in (grad_out, grad_out.contiguous()))
    for name, tensor in got.items():
        assert torch.equal(tensor, dense[name]), name


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
def test_a_thousand_calls_do_not_grow():
    torch.set_num_threads(2)
    module = fastattn.SCSA(32)
    inputs = [draw(2, 32, 20, 21, memory_format=memory_format).requires_grad_() for memory_format in FORMATS]

    def call(times):
        for _ in range(times):
            for x in inputs:
                module(x).backward(torch.ones_like(x))
                x.grad = None
                module.zero_grad()
        gc.collect()
        return resident()

    before = call(100)
    assert call(500) - before < 2 << 20  # 1,000 calls of 100 kB and more each
