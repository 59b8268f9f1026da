"""What SCSA's compiled CPU path alone has: instruction sets, threads, an expansion for small logits."""

import pytest
import torch

from fastattn.scsa import native as scsa
from tests.cases import OPERATIONS, make_case
from tests.helpers import DTYPES, FORMATS, ISAS, check, draw, few, make, named, run

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


@pytest.mark.parametrize("isa", ISAS, indirect=True)
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


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("batch", few([1, 5, 2, 3], 2))
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("options", [{}, {"window_size": -1, "head_num": 2}, {"down_sample_mode": "max_pool"}], ids=str)
def test_threads_share_samples_and_split_them(options, memory_format, batch, threads):
    module = make("scsa", 24, **options)
    x = draw(batch, 24, 15, 16, memory_format=memory_format)
    alone = check(module, x)
    torch.set_num_threads(threads)
    together = check(module, x)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("options", [{}, {"window_size": -1}, {"down_sample_mode": "max_pool"}], ids=str)
@pytest.mark.parametrize("dim", few([16, 32, 12, 48, 64, 96], 2))
def test_a_sample_does_not_depend_on_its_batch(dim, options, memory_format, threads):
    """To the last bit: alone it is divided among the threads, each of which has fewer channels than a vector."""
    torch.set_num_threads(threads)
    module, x, grad = (
        make("scsa", dim, **options),
        draw(8, dim, 28, 28, memory_format=memory_format),
        draw(1, dim, 28, 28),
    )
    every = run(module, x, grad.expand(8, -1, -1, -1).contiguous(memory_format=memory_format), "native")
    for i in range(8):
        alone = run(module, x[i : i + 1], grad.contiguous(memory_format=memory_format), "native")
        for name in ("out", "grad_x"):
            assert torch.equal(alone[name], every[name][i : i + 1])


@pytest.mark.parametrize("options", [{}, {"head_num": 2, "qkv_bias": True}], ids=["one head", "two heads, bias"])
@pytest.mark.parametrize("height", few([14, 7, 21, 28]), ids=lambda height: f"{height // 7 * 2} pixels left")
@pytest.mark.parametrize("scale", few([0.1, 1e-4, 1e-2, 0.5]), ids=lambda scale: f"logits times {scale:g}")
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


def test_rows_of_large_logits_among_small_ones():
    """Small logits go by moments, the few rows of larger ones directly: each row as exactly as alone."""
    module, x = make("pcsa", 640), draw(2, 640, 14, 15)
    with torch.no_grad():
        module.q.weight.mul_(0.1)
        module.q.weight[::40] *= 40
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check(module, x)
