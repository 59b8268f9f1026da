"""What the benchmarks run on: how work is timed there, captured in a graph, and kept apart from what ran before."""

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from .interleave import Stopwatch
from .machine import note_clocks
from .measures import peak_bytes
from .sizes import GRAPH, LAUNCHES

Work = Callable[[], Any]


class Cpu:
    """The CPU under a wall clock."""

    type = "cpu"
    launches: tuple[str | None, ...] = (None,)  # the ways in which work reaches the device, where there are several
    stopwatch: Stopwatch | None = None  # the clock does

    def before_round(self) -> None:
        """Make a round independent of the one before."""

    def after_rounds(self) -> None:
        """Note the state that the rounds left the device in."""

    def capture(self, work: Work) -> tuple[Work, Any]:
        """Return what replays the work, and the results that each replay writes anew."""
        return work, work()

    def peak_bytes(self, work: Work) -> int:
        """Return the most bytes that PyTorch held during the work, above those that it held before."""
        return peak_bytes(work)

    def release(self) -> None:
        """Give back what a contest held."""


class Rehearsal(Cpu):
    """A CPU on which a GPU's benchmarks are rehearsed: the work itself stands in for its graph."""

    launches = (LAUNCHES, GRAPH)


class Gpu(Cpu):
    """The current NVIDIA GPU under its own clock."""

    type = "cuda"
    launches = (LAUNCHES, GRAPH)
    warm_calls = 3  # before a capture, as PyTorch asks for

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.eviction = torch.empty(4 * cache, dtype=torch.uint8, device=self.type)
        self.stopwatch = self.seconds

    def seconds(self, call: Work, calls: int) -> float:
        """Seconds between two events around that many calls."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def before_round(self) -> None:
        self.eviction.zero_()  # four times the L2

    def after_rounds(self) -> None:
        note_clocks()

    def capture(self, work: Work) -> tuple[Work, Any]:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(self.warm_calls):
                work()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                results = work()
        finally:
            torch.cuda.set_stream(here)  # a capture that fails leaves its own behind
        return graph.replay, results

    def peak_bytes(self, work: Work) -> int:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = work()  # kept until the peak is read
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del result
        return peak - before

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


@functools.cache
def device() -> Cpu:
    """The GPU if PyTorch sees one, else the CPU in its place."""
    return Gpu() if torch.cuda.is_available() else Rehearsal()


def wall_clock() -> float:
    """Seconds, read when the GPU has done what it was given: the clock of pytest-benchmark's own rounds."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
