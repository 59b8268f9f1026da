"""Whole models on photographs: what an attention costs a network, eager, compiled and fast."""

import pytest

from . import shapes
from .contest import Contest, Effort
from .models import ModelContest, model_rivals


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = list(shapes.model_cases(metafunc.config.stash[shapes.SELECTION]))
    metafunc.parametrize(
        "contest",
        [(ModelContest, case) for case in cases],
        ids=map(str, cases),
        indirect=True,
        scope="module",
    )
    metafunc.parametrize("rival", dict.fromkeys(rival for case in cases for rival in model_rivals(case)))


def test_model(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="model")
