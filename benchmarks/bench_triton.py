"""What can be said of the Triton path without a GPU: the Python of a call, and the bytes that its kernels move."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
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
        benchmark.pedantic(module, (x,), rounds=60, iterations=20, warmup_rounds=5)
    times = benchmark.stats.stats
    facts = {"shape": list(x.shape), "work": work, "least_us": times.min * 1e6, "median_us": times.median * 1e6}
    benchmark.extra_info.update(suite="python", **facts)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_traffic(stage, layout, request, benchmark) -> None:
    """Count the bytes of a forward and a backward at float32; the time is the interpreter's, and means nothing."""
    stages = {"smoke": STAGES[-1:], "default": COUNTED_STAGES, "full": STAGES}[request.config.stash[SELECTION]]
    if stage not in stages:
        pytest.skip("counted in a full run")
    shapes = ["x".join(map(str, shape)) for shape in stages]
    formats = side_by_side(benchmark, MEMORY_FORMATS, "scsa", "--like-batch", str(BATCH), "--shape", *shapes)
    (found,) = (found for found in formats[layout] if tuple(found["shape"][1:]) == stage)
    benchmark.extra_info.update(suite="traffic", **found)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
def test_traffic_of_the_token_gather(layout, benchmark) -> None:
    (found,) = side_by_side(benchmark, MEMORY_FORMATS, "gather")[layout]
    benchmark.extra_info.update(suite="traffic", **found)


def test_traffic_of_attention(request, benchmark) -> None:
    if request.config.stash[SELECTION] == "smoke":
        pytest.skip("takes its time")
    (found,) = side_by_side(benchmark, (CONTIGUOUS,), "attention", "--like-batch", str(BATCH))[CONTIGUOUS]
    benchmark.extra_info.update(suite="traffic", **found)


def side_by_side(benchmark, formats: Iterable[str], *command: str) -> dict[str, list[dict]]:
    """Return what is counted of each format by a process of its own, which the first test that asks waits for."""
    return benchmark.pedantic(count_formats, (tuple(formats), *command), rounds=1)


@functools.cache
def count_formats(formats: tuple[str, ...], *command: str) -> dict[str, list[dict]]:
    counting = {layout: start(*command, "--format", layout) for layout in formats}
    try:
        return {layout: end(process) for layout, process in counting.items()}
    finally:  # none goes on while others are timed
        for process in counting.values():
            process.kill()
            process.wait()


def start(operation: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.traffic", "--json", "--operation", operation, *options]
    env, pipe = {**os.environ, "TRITON_INTERPRET": "1"}, subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str]) -> list[dict]:
    out, said = process.communicate()
    assert process.returncode == 0, said
    return json.loads(out)
