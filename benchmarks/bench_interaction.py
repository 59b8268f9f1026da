"""ACP and CAT as modules: each backend against eager, torch.compile and torch's operators rearranged."""

import pytest

from fastattn.bench.devices import Cpu

from . import shapes
from .contest import Contest, Effort
from .interaction import COMPOSED, InteractionContest
from .scene import COMPILE, EAGER, fast_backends

# test -> its cases, and the operation
CONTESTS = {"test_acp": (shapes.acp_cases, "acp"), "test_cat": (shapes.cat_cases, "cat")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases, operation = CONTESTS[metafunc.definition.name]
    chosen = cases(metafunc.config.stash[shapes.SELECTION])
    contests = [(InteractionContest, case) for case in chosen]
    metafunc.parametrize("contest", contests, ids=map(str, chosen), indirect=True, scope="module")
    metafunc.parametrize("rival", [EAGER, COMPILE, COMPOSED, *fast_backends(Cpu(), operation)])


def test_acp(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="acp")


def test_cat(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="cat")
