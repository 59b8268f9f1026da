"""SCSA as a module: each backend at the paper's shapes, against eager, torch.compile and a plain copy."""

import pytest
import torch

from fastattn.bench.devices import Cpu

from . import shapes
from .contest import Contest, Effort
from .scene import COMPILE, COPY, EAGER, fast_backends
from .scsa import BackendContest, CopyContest, PrecisionContest
from .shapes import name_of

FAST = fast_backends(Cpu())
# test -> its cases, its rivals and how they are built
CONTESTS = {
    "test_scsa": (shapes.module_cases, [EAGER, COMPILE, *FAST], BackendContest),
    "test_scsa_over_copy": (shapes.copy_cases, [COPY, *FAST], CopyContest),
    "test_scsa_precision": (
        shapes.precision_cases,
        [name_of(torch.float32), name_of(torch.bfloat16)] if FAST else [],
        PrecisionContest,
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases, rivals, build = CONTESTS[metafunc.definition.name]
    chosen = list(cases(metafunc.config.stash[shapes.SELECTION]))
    metafunc.parametrize(
        "contest", [(build, case) for case in chosen], ids=map(str, chosen), indirect=True, scope="module"
    )
    metafunc.parametrize("rival", rivals)


def test_scsa(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="module")


def test_scsa_over_copy(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="copy")


def test_scsa_precision(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="precision")
