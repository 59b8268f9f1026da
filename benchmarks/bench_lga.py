"""LGA as a module: each backend at the paper's shapes, against eager and torch.compile."""

import pytest

from fastattn.bench.devices import Cpu

from . import shapes
from .contest import Contest, Effort
from .lga import LgaContest
from .scene import COMPILE, EAGER, fast_backends


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = shapes.lga_cases(metafunc.config.stash[shapes.SELECTION])
    contests = [(LgaContest, case) for case in cases]
    metafunc.parametrize("contest", contests, ids=map(str, cases), indirect=True, scope="module")
    metafunc.parametrize("rival", [EAGER, COMPILE, *fast_backends(Cpu(), "lga")])


def test_lga(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="lga")
