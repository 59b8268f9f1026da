"""What measuring costs: the harness around a short call, and the report of a long result."""

import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import pytest
import torch

from fastattn.bench.interleave import Rival, interleave
from fastattn.bench.networks import answers, inference
from fastattn.bench.telemetry import watch
from fastattn.report import load, write_report
from tests.report.cases import long_result

from .shapes import SELECTION
from .suites.tools import ROWS

CALLS, SECONDS, ROUNDS = 5, 1e-3, 4  # of a short call


def work(steps: int) -> int:
    """The same arithmetic each time, whatever the clock does."""
    total = 0
    for step in range(steps):
        total ^= step
    return total


def steps_of(seconds: float) -> int:
    """How many steps take so long."""
    steps = 10_000
    while (taken := min(timed(partial(work, steps), 1) for _ in range(5))) < seconds / 2:
        steps *= 2
    return round(steps * seconds / taken)


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds of a call, by a bare loop."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def test_overhead(request, benchmark) -> None:
    """A call of a millisecond as `bench` times it, watched, over the same in a bare loop, turn by turn."""
    turns = 2 if request.config.stash[SELECTION] == "smoke" else 20
    call, out = partial(work, steps_of(SECONDS)), torch.zeros(1)

    def answer() -> torch.Tensor:
        call()
        return out

    rivals = [Rival(name, partial(answers, answer), partial(inference, "reference")) for name in ("a", "b")]

    def watched() -> float:
        with watch("cpu"):
            found = interleave(rivals, rounds=ROUNDS)
        return min(timing.least for timing in found.values())

    ratios = [watched() / min(timed(call, CALLS) for _ in range(2 * ROUNDS)) for _ in range(turns)]
    benchmark.pedantic(watched, rounds=1)
    benchmark.extra_info.update(suite="tools", operation="overhead", measured=100 * (median(ratios) - 1))


def test_report(request, benchmark, tmp_path) -> None:
    """Reading a result and writing its report in every format."""
    pytest.importorskip("matplotlib")
    rows = 20 if request.config.stash[SELECTION] == "smoke" else ROWS
    path = tmp_path / "long.json"
    path.write_text(json.dumps(long_result(rows)))

    def report() -> None:
        write_report({"long": load(path)}, tmp_path / "report")

    start = time.perf_counter()
    benchmark.pedantic(report, rounds=1)
    taken = time.perf_counter() - start
    benchmark.extra_info.update(suite="tools", operation="report", rows=rows, measured=taken)
