"""The suites on a CPU: each rival of each case in a test of its own, `test_scsa`, `test_lga` and so on."""

from collections.abc import Callable

import pytest

from fastattn.bench.devices import Cpu
from fastattn.bench.suite import Suite, SuiteContest

from .conftest import report
from .shapes import SELECTION
from .suites import SUITES

TESTS = {suite.test: suite for suite in SUITES.values() if suite.test}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite: Suite = TESTS[metafunc.definition.name]
    cases = list(suite.cases(metafunc.config.stash[SELECTION]))
    contests = [(suite, case, Cpu()) for case in cases]
    metafunc.parametrize("contest", contests, ids=map(str, cases), indirect=True, scope="module")
    metafunc.parametrize("rival", dict.fromkeys(rival for case in cases for rival in suite.rivals(case, Cpu())))


def entrance() -> Callable[..., None]:
    def test(contest: SuiteContest, rival: str, benchmark) -> None:
        report(contest, rival, benchmark)

    return test


globals().update({name: entrance() for name in TESTS})
