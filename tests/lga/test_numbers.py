"""Local-global attention at values and options at the ends of what eager PyTorch serves."""

import pytest
import torch
from torch.backends import mkldnn

import fastattn
from fastattn.bench.accuracy import assert_accurate
from tests.helpers import ISAS, check, draw, few, measure, named, randomize

CPU = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


@pytest.mark.parametrize("isa", ISAS, indirect=True)
class TestLargeScores:
    """A row's scores are large against what they differ by, and its softmax is one-hot."""

    pytestmark = CPU

    def test_are_as_accurate_as_eagers(self, isa):
        torch.manual_seed(0)
        check(fastattn.LocalGlobalAttention(32, 4), 1e5 * torch.randn(2, 32, 14, 14), "native")

    @pytest.mark.parametrize("scale", [1e9, 1e13, 1e15])
    def test_have_finite_gradients_where_eagers_are(self, scale, isa):
        torch.manual_seed(0)
        found, _, *eager = measure(fastattn.LocalGlobalAttention(24, 6), scale * torch.randn(1, 24, 9, 8), "native")
        assert all(tensor.isfinite().all() for run in eager for tensor in run.values())
        assert not [name for name, tensor in found.items() if not tensor.isfinite().all()]


@pytest.mark.parametrize("count", [0, 17, 64])
def test_numbers_of_scales_that_no_map_has_are_refused(count):
    with pytest.raises(ValueError, match=f"num_scales must be at .* got {count}"):
        fastattn.LocalGlobalAttention(4, 2, num_scales=count)
    scales, attention, encoding, branches, out = fastattn.LocalGlobalAttention(4, 2, num_scales=1).operands()
    with pytest.raises(ValueError, match=f"num_scales must be at .* got {count}"):
        fastattn.functional.local_global_attention(
            draw(1, 4, 3, 3), scales * count, attention, encoding, branches, out, num_heads=2
        )


@pytest.mark.cpu
def test_strides_beyond_the_map_are_not_refused():
    check(fastattn.LocalGlobalAttention(4, 2, num_scales=16), draw(1, 4, 3, 3), "reference")


@pytest.mark.parametrize("contraction", few(["released", "paper"]))
@pytest.mark.parametrize("dtype", few([torch.float16, torch.bfloat16]), ids=named)
@pytest.mark.parametrize("scale", few([1e-4, 1.0]))
@pytest.mark.usefixtures("native")
@pytest.mark.cpu
def test_under_autocast_the_gradient_of_a_float32_input_is_not_rounded_to_16_bits(scale, dtype, contraction):
    """Through the residuals it is multiplied by alphas, in float32 as by eager: small ones would leave nothing."""
    module = randomize(fastattn.LocalGlobalAttention(26, 2, (3, 1), 5, contraction=contraction))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    # oneDNN may not come back from float16 depthwise convolutions
    with torch.autocast("cpu", dtype), mkldnn.flags(enabled=dtype is not torch.float16, allow_tf32=None):
        found, truth, *eager = measure(module, draw(2, 26, 5, 9), "native")
    assert found["out"].dtype == dtype
    assert found["grad_x"].dtype == torch.float32
    assert_accurate(found, truth, *eager)
