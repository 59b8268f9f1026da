"""What can be said of the Triton path without a GPU: the Python of a call, and the bytes that its kernels move."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

import fastattn
from fastattn.bench.sizes import CONTIGUOUS, MEMORY_FORMATS, STAGES
from fastattn.core import backends

from .shapes import SELECTION
from .suites.scsa import COUNTED_STAGES

pytest.importorskip("triton")
BATCH = 32


@pytest.fixture
def no_launches() -> Iterator[None]:
    """Let the Triton backend serve CPU tensors and launch nothing."""
    from fastattn.kernels.common.launch import Launch

    served = {**backends.BACKENDS, "triton": lambda call: []}
    backends._choose.cache_clear()
    with patch.object(Launch, "__call__", lambda self, arguments: None), patch.dict(backends.BACKENDS, served):
        yield
    backends._choose.cache_clear()


@pytest.mark.parametrize("work", ["inference", "training"])
@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.usefixtures("no_launches")
def test_python_of_a_forward_call(stage, work, benchmark) -> None:
    """Time a forward call with its launches replaced by nothing: all that an eager call adds to them."""
    module, x = fastattn.SCSA(stage[0]), torch.zeros(2, *stage)
    with fastattn.use_backend("triton"), torch.set_grad_enabled(work == "training"):
        benchmark.pedantic(module, (x,), rounds=200, iterations=20, warmup_rounds=5)
    times = benchmark.stats.stats
    facts = {"shape": list(x.shape), "work": work, "least_us": times.min * 1e6, "median_us": times.median * 1e6}
    benchmark.extra_info.update(suite="python", **facts)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_traffic(stage, layout, request, benchmark) -> None:
    """Count the bytes of a forward and a backward at float32; the time is the interpreter's, and means nothing."""
    if stage not in {"smoke": STAGES[-1:], "default": COUNTED_STAGES, "full": STAGES}[request.config.stash[SELECTION]]:
        pytest.skip("counted in a full run")
    shape = "x".join(map(str, stage))
    count(benchmark, "scsa", "--format", layout, "--shape", shape, "--like-batch", str(BATCH))


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
def test_traffic_of_the_token_gather(layout, request, benchmark) -> None:
    if request.config.stash[SELECTION] == "smoke" and layout == CONTIGUOUS:
        pytest.skip("one format is enough smoke")
    count(benchmark, "gather", "--format", layout)


def test_traffic_of_attention(request, benchmark) -> None:
    if request.config.stash[SELECTION] == "smoke":
        pytest.skip("takes its time")
    count(benchmark, "attention", "--like-batch", str(BATCH))


def count(benchmark, operation: str, *options: str) -> None:
    command = [sys.executable, "-m", "benchmarks.traffic", "--json", "--operation", operation, *options]
    done = benchmark.pedantic(
        subprocess.run, (command,), rounds=1,
        kwargs={"env": {**os.environ, "TRITON_INTERPRET": "1"}, "capture_output": True, "text": True, "check": True},
    )  # fmt: skip
    (found,) = json.loads(done.stdout)
    benchmark.extra_info.update(suite="traffic", **found)
