"""What the compiled CPU path alone has: instruction sets, threads, an expansion for small logits, its memory."""

import gc
import itertools
import os
from pathlib import Path

import pytest
import torch

import fastattn
from fastattn.native import scsa
from fastattn.ops import interaction

from .cases import OPERATIONS, make_case
from .helpers import DTYPES, FORMATS, check, draw, few, make, named, randomize, run
from .test_interaction import ACP, BOTH, CAT, make_acp, make_both, make_cat
from .test_interaction import check as check_interaction
from .test_lga import check_draws

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


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


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("default", torch.float32),
        ("default", torch.bfloat16),
        ("default", torch.float16),
        ("two heads of twelve", torch.float32),
        ("five heads of three", torch.float32),
        ("heads not divisible by three", torch.float32),
        ("one row", torch.float32),
        ("released", torch.float32),
    ],
    ids=named,
)
def test_lga_on_every_instruction_set(case, dtype, memory_format, isa):
    check_draws(4, case, dtype=dtype, memory_format=memory_format)


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("batch", few([1, 5, 2, 3], 2))
@pytest.mark.parametrize("options", [{}, {"contraction": "released"}], ids=str)
def test_lgas_threads_share_samples_and_split_them(options, batch, threads):
    module, x = randomize(fastattn.LocalGlobalAttention(40, 5, **options)), draw(batch, 40, 15, 16)
    alone = run(module, x, torch.ones_like(x), "native")
    torch.set_num_threads(threads)
    together = run(module, x, torch.ones_like(x), "native")
    again = run(module, x, torch.ones_like(x), "native")
    for name, tensor in alone.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-4 * scale)
        assert torch.equal(together[name], again[name]), name


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("case", ["default", "odd height and width", "windows of 3, overhanging", "larger"])
def test_acp_on_every_instruction_set(case, dtype, isa):
    for memory_format in FORMATS:
        check_interaction(*make_acp(case, dtype, memory_format))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("case", CAT)
def test_cat_on_every_instruction_set(case, dtype, isa):
    check_interaction(*make_cat(case, dtype))


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("batch", few([1, 5, 2, 3], 2))
@pytest.mark.parametrize("aggregate", ["concat", "sum"])
def test_acps_and_cats_threads_share_samples_and_split_them(aggregate, batch, threads):
    map_, tokens = draw(batch, 40, 23, 16), draw(batch, 700, 40, 1).squeeze(3)
    modules = fastattn.AggressiveConvPooling(40, aggregate=aggregate), fastattn.ConceptualAttention(40, 21)
    for module, x in zip(modules, (map_, tokens), strict=True):
        alone = run(module, x, torch.ones_like(x), "native")
        torch.set_num_threads(threads)
        together, again = (run(module, x, torch.ones_like(x), "native") for _ in range(2))
        torch.set_num_threads(1)
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()))
            assert torch.equal(together[name], again[name]), name


@pytest.mark.parametrize(
    ("make_case", "case"),
    [*((make_acp, case) for case in ACP), *((make_cat, case) for case in CAT), *((make_both, case) for case in BOTH)],
)
def test_interaction_without_the_extension(make_case, case, monkeypatch):
    monkeypatch.setattr(interaction, "_has_extension", lambda backend: False)
    check_interaction(*make_case(case))


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("batch", few([1, 5, 2, 3], 2))
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


@pytest.mark.parametrize("options", [{}, {"head_num": 2, "qkv_bias": True}], ids=["one head", "two heads, bias"])
@pytest.mark.parametrize("height", few([14, 7, 21, 28]), ids=lambda height: f"{height // 7 * 2} pixels left")
@pytest.mark.parametrize("scale", few([0.1, 1e-4, 1e-2, 0.5], 2), ids=lambda scale: f"logits times {scale:g}")
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


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
def test_a_thousand_calls_do_not_grow():
    torch.set_num_threads(2)
    modules = fastattn.SCSA(32), fastattn.LocalGlobalAttention(32, 8, (3,), 5)
    inputs = [draw(2, 32, 20, 21, memory_format=memory_format).requires_grad_() for memory_format in FORMATS]

    def call(times):
        for _ in range(times):
            for x, module in itertools.product(inputs, modules):
                module(x).backward(torch.ones_like(x))
                x.grad = None
                module.zero_grad()
        gc.collect()
        return resident()

    before = call(100)
    assert call(500) - before < 2 << 20  # 2,000 calls of 100 kB and more each


@pytest.mark.parametrize("shape", [(2, 16, 14, 14), (3, 16, 20, 23), (1, 16, 7, 7)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": -1},
        {"down_sample_mode": "max_pool"},
        {"window_size": -1, "down_sample_mode": "max_pool"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_saved_size_is_the_extensions(name, options, shape):
    module, x = make(name, 16, **(options if name != "smsa" else {})), draw(*shape)
    options = (1, options.get("window_size", 7), options.get("down_sample_mode", "avg_pool"), "sigmoid")
    options = options if name != "smsa" else ("sigmoid",)
    plan, *_ = scsa._prepare(module.operation, x, module._params(), options)
    operation = module.operation
    assert plan.saved_size == scsa.saved_size(operation.spatial, operation.channel, x.shape, options)
