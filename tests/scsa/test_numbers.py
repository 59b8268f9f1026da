"""SCSA's numbers that hold whatever the batch, and PCSA's where the map's mean is large."""

import pytest
import torch

import fastattn
from fastattn.bench.accuracy import assert_accurate
from tests.helpers import ISAS, draw, few, measure, named, randomize, run

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]
isas = pytest.mark.parametrize("isa", ISAS, indirect=True)
CASES = {
    "one pooled pixel": (512, 7, {}),
    "one head": (128, 7, {"head_num": 1}),
    "pooled pixels": (128, 14, {}),
    "every pixel": (64, 7, {"window_size": 1}),
    "softmax": (64, 14, {"gate_layer": "softmax"}),
}


@isas
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=named)
@pytest.mark.parametrize("spread", few([1, 10]), ids=lambda spread: f"weights times {spread}")
@pytest.mark.parametrize("case", CASES)
def test_a_sample_is_computed_alike_in_any_batch(case, spread, memory_format, isa):
    dim, size, options = CASES[case]
    module = randomize(fastattn.SCSA(dim, **options))
    for layer in (module.q, module.k):
        layer.weight.data *= spread
    x = draw(5, dim, size, size, memory_format=memory_format)
    grad = draw(5, dim, size, size, memory_format=memory_format, seed=2)
    torch.set_num_threads(2)
    whole = run(module, x, grad, "native")
    for i in range(5):
        alone = run(module, x[i : i + 1], grad[i : i + 1], "native")
        for name in ("out", "grad_x"):
            assert torch.equal(alone[name], whole[name][i : i + 1]), f"{name} of sample {i}"


@isas
@pytest.mark.parametrize("seed", few(range(4)))
def test_a_map_whose_mean_is_large(seed, isa):
    torch.manual_seed(seed)
    found, truth, eager, _ = measure(fastattn.PCSA(64, window_size=1), torch.randn(2, 64, 7, 7) + 1000, "native")
    assert_accurate(found, truth, eager)
