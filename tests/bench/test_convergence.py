"""A training by the fast path is the reference's: loss by loss at first, and as good in the end."""

import pytest

from benchmarks.suites.convergence import ATTENTIONS, BATCH, EPOCHS, FIRST, TRAINED, apart, train
from tests.helpers import DEVICE, INTERPRETED, few

pytest.importorskip("sklearn")


@pytest.mark.triton
@pytest.mark.skipif(INTERPRETED, reason="a training's worth of interpreted kernels takes hours")
@pytest.mark.parametrize("attention", few(ATTENTIONS))
def test_losses_and_accuracy_are_the_references(attention: str, fast: str) -> None:
    expected, found = (train(attention, backend, device=DEVICE) for backend in ("reference", fast))
    assert len(found.losses) == EPOCHS * TRAINED // BATCH > FIRST
    assert apart(found.losses, expected.losses) < 1e-4
    assert abs(found.accuracy - expected.accuracy) < 0.01
    assert min(found.accuracy, expected.accuracy) > 0.95
