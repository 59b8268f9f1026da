"""CFSAM: its attention alone, what that takes of memory where it is long, and the module with its ablations."""

from functools import partial

import pytest

from fastattn import functional
from fastattn.bench.accuracy import assert_accurate
from fastattn.bench.devices import Cpu

from . import shapes
from .cfsam import COPIES, VIEW, AttentionContest, PyramidContest, attention_scene
from .contest import Contest, Effort
from .measures import peak_bytes
from .scene import COMPILE, EAGER, fast_backends, setting
from .shapes import AttentionCase

# test -> its cases, its rivals and how they are built
CONTESTS = {
    "test_attention": (
        shapes.attention_cases,
        [EAGER, COMPILE, COPIES, VIEW, *fast_backends(Cpu(), "partition_attention")],
        AttentionContest,
    ),
    "test_cfsam": (shapes.pyramid_cases, [EAGER, COMPILE, *fast_backends(Cpu(), "cfsam")], PyramidContest),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contest" in metafunc.fixturenames:
        cases, rivals, build = CONTESTS[metafunc.definition.name]
        chosen = cases(metafunc.config.stash[shapes.SELECTION])
        contests = [(build, case) for case in chosen]
        metafunc.parametrize("contest", contests, ids=map(str, chosen), indirect=True, scope="module")
        metafunc.parametrize("rival", rivals)


def test_attention(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="attention")


def test_cfsam(contest: Contest, rival: str, effort: Effort, benchmark) -> None:
    contest.report(benchmark, rival, effort, suite="pyramid")


@pytest.mark.parametrize("work", shapes.WORKS)
@pytest.mark.parametrize("backend", fast_backends(Cpu(), "partition_attention"))
def test_memory_of_long_attention(work, backend, request, benchmark) -> None:
    """The peak of one call, with q, k, v and the gradient that comes in; the time is the profiler's too."""
    case = AttentionCase(1, 200 if request.config.stash[shapes.SELECTION] == "smoke" else shapes.LONG, work=work)
    scene, found = attention_scene(case), {}
    attend = partial(functional.partition_attention, num_parts=case.parts, num_heads=case.heads)

    def call() -> None:
        found.update(scene.results(attend))

    with setting(work, backend):
        peak = benchmark.pedantic(peak_bytes, (call,), rounds=1)
    assert_accurate(found, *scene.truths())
    held = [*scene.inputs.values(), *(scene.grads if work == shapes.TRAINING else [])]
    peak += sum(t.numel() * t.element_size() for t in held)
    facts = {"operation": "partition_attention", "backend": backend, **case.facts()}
    benchmark.extra_info.update(suite="memory", **facts, peak_memory_bytes=peak)
