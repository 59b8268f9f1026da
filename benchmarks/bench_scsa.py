"""SCSA as a module: each backend at the paper's shapes, against eager, torch.compile and a plain copy."""

import pytest
import torch

from . import shapes
from .contest import Contest, Effort
from .scsa import COMPILE, COPY, EAGER, BackendContest, CopyContest, PrecisionContest, fast_backends
from .shapes import name_of

# test -> its cases, its rivals and how they are built
CONTESTS = {
    "test_scsa": (shapes.module_cases, [EAGER, COMPILE, *fast_backends()], BackendContest),
    "test_scsa_over_copy": (shapes.copy_cases, [COPY, *fast_backends()], CopyContest),
    "test_scsa_precision": (
        shapes.precision_cases,
        [name_of(torch.float32), name_of(torch.bfloat16)] if fast_backends() else [],
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
