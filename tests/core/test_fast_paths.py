"""The fast paths against the float64 reference: output and every gradient by name.

They are the compiled CPU path; Triton under TRITON_INTERPRET=1; Triton on a GPU with FASTATTN_TEST_DEVICE=cuda.
"""

import copy
import statistics

import pytest
import torch

from tests.cases import CASES, OPERATIONS, make_case
from tests.helpers import (
    DTYPES,
    FAST,
    FORMATS,
    INTERPRETED,
    by_turns,
    check,
    draw,
    few_interpreted,
    make,
    named,
    run,
    thin,
)

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("fast")]
# with Triton the parts and the narrow dtypes run on these alone
FEW = ("default", "bias, heads, odd map", "max pooling, heads, bias", "softmax gates")


def skips(case, name, dtype):
    """Return whether Triton leaves this one out: every case takes seconds to interpret or compile."""
    if FAST != "triton":
        return False
    if case in FEW:
        return name != "scsa" and dtype != torch.float32
    return name != "scsa" or dtype != torch.float32 or "megabyte" in case  # CPU caches


NUMBERS = {
    f"{case}-{name}-{named(dtype)}": (name, case, dtype)
    for case in CASES
    for name in OPERATIONS
    for dtype in DTYPES
    if not skips(case, name, dtype)
}


def is_redundant(name, case, dtype):
    """Return whether interpreting it, which takes seconds, is for a full run: a part's kernels are SCSA's, and every
    second case differs from another in one number; of both narrow dtypes what is loaded is widened."""
    if case in FEW:
        return INTERPRETED and (case != FEW[1] or dtype == torch.float16) and (name != "scsa" or dtype != torch.float32)
    return INTERPRETED and [*CASES].index(case) % 2 == 1


@pytest.mark.parametrize(
    ("case", "memory_format"), by_turns(NUMBERS, [is_redundant(*NUMBERS[case]) for case in NUMBERS]), ids=named
)
def test_numbers(case, memory_format):
    module, x = make_case(*NUMBERS[case], memory_format)
    got = check(module, x)
    assert got["out"].stride() == x.stride()
    assert got["grad_x"].stride() == x.stride()


@pytest.mark.parametrize("threads", thin([1, 3]))
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_same_call_gives_the_same_bits(name, threads):
    torch.set_num_threads(threads)
    module, x = make_case(name, "default" if FAST == "triton" else "twelve per group, odd map")
    first, second = (run(module, x, torch.ones_like(x), FAST) for _ in range(2))
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.parametrize(
    "shape",
    [(1, 32, 28, 28), (2, 32, 14, 14), (2, 32, 7, 7)],
    ids=["sixteen pixels left", "four pixels left", "one pixel left"],
)
@pytest.mark.parametrize("scale", few_interpreted([1e6, 1e3, 30.0]), ids=lambda scale: f"logits times {scale:g}")
def test_large_logits_need_the_softmax_maximum(shape, scale):
    module, x = make("pcsa", 32), draw(*shape)
    with torch.no_grad():
        module.q.weight.mul_(scale)
        module.k.weight.mul_(scale**0.5)
        grad_out = torch.ones_like(x)
    truth = run(make_double(module), x.double(), grad_out.double(), "reference")
    got = run(module, x, grad_out, FAST)
    eager = run(module, x, grad_out, "reference")
    assert all(tensor.isfinite().all() for tensor in got.values())
    for name in ("out", "grad_x"):
        error, eager_error = ((r[name] - truth[name]).norm() / truth[name].norm() for r in (got, eager))
        assert error <= max(1e-5, 2 * eager_error), name


def make_double(module):
    """Return a float64 copy."""
    return copy.deepcopy(module).double()


@pytest.mark.parametrize("gate", few_interpreted(["sigmoid", "softmax"]))
@pytest.mark.parametrize("shape", [(1, 8, 14, 2), (1, 8, 2, 2), (2, 12, 3, 4)], ids=str)
def test_few_values_per_group_err_as_eager_does(shape, gate):
    """GroupNorm over a few values cancels most of a gradient, so one draw says little: the median of many does."""
    errors = {}
    for seed in range(9 if FAST == "triton" else 31):
        module, x = make("smsa", shape[1], gate_layer=gate, seed=seed), draw(*shape, seed=seed)
        grad_out = draw(*shape, seed=100 + seed)
        truth = run(make_double(module), x.double(), grad_out.double(), "reference")
        runs = run(module, x, grad_out, FAST), run(module, x, grad_out, "reference")
        for name, exact in truth.items():
            pair = [((got[name] - exact).norm() / exact.norm()).item() for got in runs]
            errors.setdefault(name, []).append(pair)
    for name, pairs in errors.items():
        ours, eager = (statistics.median(column) for column in zip(*pairs, strict=True))
        assert ours <= 2 * eager, f"{name}: median error {ours:.2e}, eager's {eager:.2e}"


@pytest.mark.parametrize("name", few_interpreted(OPERATIONS))
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e4], ids=lambda scale: f"x times {scale:g}")
def test_scale_of_the_input(name, scale):
    check(make(name, 16), draw(2, 16, 15, 14) * scale)


@pytest.mark.parametrize("memory_format", few_interpreted(FORMATS), ids=named)
@pytest.mark.parametrize("dtype", thin(DTYPES), ids=named)
@pytest.mark.parametrize(
    "options", [{}, {"down_sample_mode": "max_pool"}, {"window_size": -1}, {"head_num": 4}], ids=str
)
@pytest.mark.parametrize("name", thin(OPERATIONS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_propagates_as_in_eager(bad, name, options, dtype, memory_format):
    module = make(name, 16, dtype=dtype, **(options if name != "smsa" else {}))
    x = draw(3, 16, 15, 14, dtype=dtype, memory_format=memory_format)
    x[1, 5, 3, 4] = bad
    grad_out = draw(3, 16, 15, 14, dtype=dtype, seed=3)
    got, eager = (run(module, x, grad_out, backend) for backend in (FAST, "reference"))
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
    got, eager = (run(module, x, torch.ones_like(x), backend) for backend in (FAST, "reference"))
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
    "channels sliced from channels_last": lambda: draw(2, 32, 14, 14, memory_format=torch.channels_last)[:, 8:24],
    "batch expanded": lambda: draw(1, 16, 14, 14).expand(3, -1, -1, -1),
    "pixels expanded": lambda: draw(2, 16, 1, 1).expand(-1, -1, 14, 14),
    "height and width swapped": lambda: draw(2, 16, 14, 14).transpose(2, 3),
    "batch and channels swapped": lambda: draw(16, 2, 14, 14).transpose(0, 1),
    "cropped": lambda: draw(2, 16, 20, 20)[:, :, 3:17, 3:17],
    "offset in its storage": lambda: draw(3, 16, 14, 14)[1:],
    "unaligned": lambda: draw(1, 1, 1, 16 * 14 * 14 + 1).flatten()[1:].view(1, 16, 14, 14),
}


@pytest.mark.parametrize("name", few_interpreted(OPERATIONS))
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
@pytest.mark.parametrize("memory_format", few_interpreted(FORMATS), ids=named)
def test_gradients_that_arrive_strided(memory_format, layout):
    module, x = make("scsa", 16), draw(2, 16, 14, 14, memory_format=memory_format)
    grad_out = {
        "expanded": torch.ones(()).expand(x.shape),
        "sliced": draw(2, 16, 14, 28)[..., ::2],
        "another format": draw(2, 16, 14, 14).contiguous(memory_format=torch.channels_last).transpose(2, 3),
    }[layout]
    got, dense = (run(module, x, grad, FAST) for grad in (grad_out, grad_out.contiguous()))
    for name, tensor in got.items():
        assert torch.equal(tensor, dense[name]), name
