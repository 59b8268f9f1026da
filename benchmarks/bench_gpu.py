"""SCSA, models with it, CFSAM, LGA, ACP and CAT on a GPU, by parts:
`pytest benchmarks/bench_gpu.py --benchmark-only --part 32`.

With `--smoke` a machine without a GPU rehearses a part: on its CPU, without graphs.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch

from fastattn.bench.devices import device, wall_clock

from . import shapes
from .cfsam import COPIES, VIEW
from .contest import Effort
from .gpu import (
    GpuContest,
    GpuInteractionContest,
    GpuLgaContest,
    GpuModelContest,
    GpuScsaContest,
    cfsam_contest,
    rival,
)
from .models import PLAIN
from .scene import COMPILE, COPY, EAGER, TUNED, fast_backends
from .shapes import GRAPH, LAUNCHES, Selection

pytestmark = pytest.mark.benchmark(timer=wall_clock)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    part, selection = metafunc.config.stash[shapes.PART], metafunc.config.stash[shapes.SELECTION]
    if part is None:
        skip(metafunc, f"on a GPU, by parts: --part {'|'.join(shapes.PARTS)}")
    elif not torch.cuda.is_available() and selection != "smoke":
        skip(metafunc, "PyTorch sees no GPU")
    else:
        build, cases, names = rows(part, selection)
        metafunc.parametrize(
            "contest", [(build, case) for case in cases], ids=map(str, cases), indirect=True, scope="module"
        )
        metafunc.parametrize("name", [rival(name, launch) for launch, name in product((LAUNCHES, GRAPH), names)])


def skip(metafunc: pytest.Metafunc, reason: str) -> None:
    row = pytest.param(None, "", marks=pytest.mark.skip(reason=reason), id="none")
    metafunc.parametrize(("contest", "name"), [row])


def rows(part: str, selection: Selection) -> tuple[Callable[..., GpuContest], list, list[str]]:
    """How the contests of a part are built, from which cases, and who takes part."""
    fast = fast_backends(device())
    if part == "models":
        build = partial(GpuModelContest, device=device())
        return build, shapes.gpu_model_cases(selection), [PLAIN, EAGER, *fast]
    if part == "cfsam":
        names = [EAGER, COMPILE, COPIES, VIEW, *fast_backends(device(), "cfsam")]
        return partial(cfsam_contest, device=device()), shapes.gpu_cfsam_cases(selection), names
    if part == "lga":
        names = [EAGER, COMPILE, *fast_backends(device(), "lga")]
        return partial(GpuLgaContest, device=device()), shapes.gpu_lga_cases(selection), names
    if part == "interaction":
        both = dict.fromkeys(fast_backends(device(), "acp") + fast_backends(device(), "cat"))
        names = [EAGER, COMPILE, *both]
        return partial(GpuInteractionContest, device=device()), shapes.gpu_interaction_cases(selection), names
    batch, _, tuned = part.partition("-")
    names = [EAGER, TUNED if tuned else COMPILE, COPY, *fast]
    cases = shapes.gpu_cases(int(batch), selection, tuned=bool(tuned))
    return partial(GpuScsaContest, device=device(), names=names), cases, names


def test_gpu(contest: GpuContest, name: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, name, effort, suite=contest.suite)
