"""The tests' own check of numbers: what it finds wrong, and what it takes for chance."""

import pytest
import torch

from fastattn import zoo
from tests import helpers
from tests.helpers import check, draw, randomize, run

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


def check_with(monkeypatch, factors):
    """Check a gate whose native outputs, one after the other, are wrong by these factors."""
    left = iter(factors)

    def wrong(module, x, grad_out, backend, **options):
        found = run(module, x, grad_out, backend, **options)
        if backend == "native":
            found["out"] = found["out"] * (1 + next(left))
        return found

    monkeypatch.setattr(helpers, "run", wrong)
    check(randomize(zoo.SEModule(16)), draw(2, 16, 5, 6), "native")
    return len([*left])


@pytest.mark.parametrize("always", [2e-5, 1e-3, 1.0, torch.nan])
def test_what_is_always_wrong(always, monkeypatch):
    with pytest.raises(AssertionError, match=r"out: error|neighbours are wrong"):
        check_with(monkeypatch, [always] * 17)


@pytest.mark.parametrize("once", [1e-4, 1.0, torch.nan])
def test_what_is_wrong_once(once, monkeypatch):
    with pytest.raises(AssertionError, match="out: error"):
        check_with(monkeypatch, [once] + [0.0] * 16)


def test_what_is_wrong_here_and_there(monkeypatch):
    with pytest.raises(AssertionError, match="9 of 16 neighbours are wrong"):
        check_with(monkeypatch, [2e-5, *[2e-5] * 9, *[0.0] * 7])


def test_what_may_be_chance_is_measured_with_its_neighbours(monkeypatch):
    assert check_with(monkeypatch, [2e-5] + [0.0] * 16) == 0
    assert check_with(monkeypatch, [0.0] * 17) == 16
