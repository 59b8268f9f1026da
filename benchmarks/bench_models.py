"""Whole models on photographs: what SCSA costs a network, eager and fast."""

import pytest

from . import shapes
from .contest import Contest, Effort
from .models import PLAIN, ModelContest
from .scsa import EAGER, fast_backends


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = list(shapes.model_cases(metafunc.config.stash[shapes.SELECTION]))
    metafunc.parametrize(
        "contest",
        [(ModelContest, case) for case in cases],
        ids=map(str, cases),
        indirect=True,
        scope="module",
    )
    metafunc.parametrize("rival", [PLAIN, EAGER, *fast_backends()])


def test_model(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="model")
