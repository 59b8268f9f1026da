"""Conceptual attention at values where what is constant over a softmax must cancel in its gradient."""

import copy

import pytest
import torch

import fastattn
from tests.helpers import ISAS, full, run
from tests.interaction.test_module import check

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]
isas = pytest.mark.parametrize("isa", ISAS, indirect=True)


@isas
@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_output_weights_small_against_the_bias(scale, isa):
    torch.manual_seed(0)
    module = fastattn.ConceptualAttention(64)
    module.out.weight.data *= scale
    check(module, (torch.randn(4, 196, 64),))


@pytest.mark.parametrize(
    ("threads", "isa"),
    [
        *((1, isa) for isa in ISAS),
        # two threads wait for one another beside the other tests: ten seconds
        *(pytest.param(2, isa, marks=full(isa != ISAS[1])) for isa in ISAS),
    ],
    indirect=["isa"],
)
def test_scores_whose_softmax_is_one_hot(threads, isa):
    torch.manual_seed(0)
    module, x = fastattn.ConceptualAttention(64), 1e5 * torch.randn(3, 196, 64)
    torch.set_num_threads(threads)
    check(module, (x,))


@isas
def test_scores_beyond_the_exponents_reach_give_nothing_to_the_weight(isa):
    torch.manual_seed(0)
    module, x = fastattn.ConceptualAttention(8, 3), 1e8 * torch.randn(1, 5, 8)
    assert not run(copy.deepcopy(module).double(), x.double(), x.double(), "reference")["score.weight"].any()
    assert not run(module, x, x, "native")["score.weight"].any()
