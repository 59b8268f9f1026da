"""What CFSAM's attention takes of memory where it is long."""

from functools import partial

import pytest

from fastattn import functional
from fastattn.bench.accuracy import assert_accurate
from fastattn.bench.contest import fast_backends
from fastattn.bench.measures import peak_bytes
from fastattn.bench.scene import setting
from fastattn.bench.sizes import TRAINING, WORKS

from .shapes import SELECTION
from .suites.cfsam import LONG, AttentionCase, attention_scene


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("backend", fast_backends("partition_attention", "cpu"))
def test_memory_of_long_attention(work, backend, request, benchmark) -> None:
    """The peak of one call, with q, k, v and the gradient that comes in; the time is the profiler's too."""
    case = AttentionCase(1, 200 if request.config.stash[SELECTION] == "smoke" else LONG, work=work)
    scene, found = attention_scene(case), {}
    attend = partial(functional.partition_attention, num_parts=case.parts, num_heads=case.heads)

    def call() -> None:
        found.update(scene.results(attend))

    with setting(work, backend):
        peak = benchmark.pedantic(peak_bytes, (call,), rounds=1)
    assert_accurate(found, *scene.truths())
    held = [*scene.inputs.values(), *(scene.grads if work == TRAINING else [])]
    peak += sum(t.numel() * t.element_size() for t in held)
    facts = {"operation": "partition_attention", "backend": backend, **case.facts()}
    benchmark.extra_info.update(suite="memory", **facts, peak_memory_bytes=peak)
