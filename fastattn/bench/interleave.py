"""Ratios of times that stay fair while the machine drifts: the rivals take turns, round by round.

pytest-benchmark runs one benchmark after another, so a clock that changes in between lands in the ratio. Here
every round times each rival once, in rotating order, and a ratio is taken between times of the same rounds.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median, quantiles

MAX_CALLS = 10_000
WARM_CALLS = 2  # of each rival, before its first round, where nothing else is said
Stopwatch = Callable[[Callable[[], object], int], float]  # times a call done so many times: seconds for all


@dataclass(frozen=True)
class Rival:
    """One way to do the work: `call` does it once; `context` surrounds each round, outside of the clock."""

    name: str
    call: Callable[[], object]
    context: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one rival, one number for each round, and the calls that each round averaged."""

    rounds: tuple[float, ...]
    calls: int

    @property
    def least(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(self.rounds)


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: of the least rounds, and the median and the quartiles of the ratios inside each round."""

    least: float
    median: float
    quartiles: tuple[float, float]

    def facts(self) -> dict[str, float | list[float]]:
        """What a result file says about it."""
        return {"least": self.least, "median": self.median, "quartiles": list(self.quartiles)}


def interleave(
    rivals: Sequence[Rival],
    *,
    warm_calls: int = WARM_CALLS,
    rounds: int = 20,
    round_seconds: float = 0.005,
    budget_seconds: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
    stopwatch: Stopwatch | None = None,
    before_round: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time the rivals in turns and return their timings by name.

    A round calls a rival as often as fills `round_seconds` (at least once), after calls outside of the clock
    that warm it up (`warm_calls` before the first round) and, for rivals faster than a round, bring its own data
    back into the caches (once, each round). Rounds stop early, but never before three, once `budget_seconds`
    are spent. `stopwatch` is a device's own, in place of the clock; `before_round` makes a round independent
    of the one before. Raises ValueError without rivals or rounds, and where two share a name.
    """
    names = [rival.name for rival in rivals]
    if not names or rounds < 1:
        raise ValueError("nothing to time: at least one rival and one round are needed")
    if len(set(names)) != len(names):
        raise ValueError(f"two rivals share a name: {names}")

    def timed(rival: Rival, calls: int) -> float:
        call = rival.call
        if stopwatch is not None:
            return stopwatch(call, calls) / calls
        start = clock()
        for _ in range(calls):
            call()
        return (clock() - start) / calls

    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        began = clock()
        calls = {rival.name: calibrate(rival, warm_calls, round_seconds, timed) for rival in rivals}
        found: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds):
            if turn >= 3 and clock() - began > budget_seconds:
                break
            for place in range(len(rivals)):
                rival = rivals[(turn + place) % len(rivals)]
                before_round()
                with rival.context():
                    if calls[rival.name] > 1:
                        rival.call()
                    found[rival.name].append(timed(rival, calls[rival.name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(found[name]), calls[name]) for name in names}


def calibrate(rival: Rival, warm_calls: int, round_seconds: float, timed: Callable[[Rival, int], float]) -> int:
    """Warm a rival up and return how many of its calls fill a round."""
    with rival.context():
        for _ in range(warm_calls):
            rival.call()
        seconds = timed(rival, 1)
        if seconds * 4 < round_seconds:  # one call of a short one says little
            seconds = timed(rival, 4)
    return max(1, min(MAX_CALLS, round(round_seconds / max(seconds, 1e-9))))


def speedup(timings: Mapping[str, Timing], of: str, over: str) -> Ratio:
    """How many times faster the rival `of` is than the rival `over`."""
    ratios = [slow / fast for slow, fast in zip(timings[over].rounds, timings[of].rounds, strict=True)]
    return Ratio(timings[over].least / timings[of].least, median(ratios), quartiles(ratios))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single value itself."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third
