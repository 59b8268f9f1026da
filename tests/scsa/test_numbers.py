"""SCSA's numbers that hold whatever the batch, and PCSA's where the map's mean is large."""

import pytest
import torch

import fastattn
from tests.helpers import check, draw, few, named, randomize, run

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]
isas = pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"], indirect=True)
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
@pytest.mark.parametrize("seed", range(4))
def test_a_map_whose_mean_is_large(seed, isa):
    module = randomize(fastattn.PCSA(64, window_size=1), seed)
    check(module, draw(2, 64, 7, 7, seed=seed) + 1000, "native")
