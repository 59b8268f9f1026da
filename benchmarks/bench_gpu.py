"""SCSA, models with it, CFSAM, LGA, ACP and CAT on a GPU, by parts:
`pytest benchmarks/bench_gpu.py --benchmark-only --part 32`.

With `--smoke` a machine without a GPU rehearses a part: on its CPU, without graphs.
"""

from itertools import product

import pytest
import torch

from fastattn.bench.contest import key_of
from fastattn.bench.devices import device, wall_clock
from fastattn.bench.suite import SuiteContest

from .conftest import report
from .shapes import PART, SELECTION
from .suites import PARTS, SUITES

pytestmark = pytest.mark.benchmark(timer=wall_clock)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    part, selection = metafunc.config.stash[PART], metafunc.config.stash[SELECTION]
    if part is None:
        skip(metafunc, f"on a GPU, by parts: --part {'|'.join(PARTS)}")
    elif not torch.cuda.is_available() and selection != "smoke":
        skip(metafunc, "PyTorch sees no GPU")
    else:
        pairs = [(SUITES[name], case) for name, case in PARTS[part](selection)]
        contests = [(suite, case, device()) for suite, case in pairs]
        ids = [str(case) for _, case in pairs]
        names = dict.fromkeys(name for suite, case in pairs for name in suite.rivals(case, device()))
        metafunc.parametrize("contest", contests, ids=ids, indirect=True, scope="module")
        metafunc.parametrize("name", [key_of(name, launch) for launch, name in product(device().launches, names)])


def skip(metafunc: pytest.Metafunc, reason: str) -> None:
    row = pytest.param(None, "", marks=pytest.mark.skip(reason=reason), id="none")
    metafunc.parametrize(("contest", "name"), [row])


def test_gpu(contest: SuiteContest, name: str, benchmark) -> None:
    report(contest, name, benchmark)
