"""A contest: rivals that do the same work, each checked, then timed in turns, then reported one by one."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fastattn.bench.accuracy import assert_accurate, relative_error
from fastattn.bench.devices import Cpu
from fastattn.bench.interleave import Ratio, Rival, Timing, interleave, speedup

from .limit import TimeUp, time_limit

COMPILERS = ("compile", "max-autotune")  # how the names of torch.compile's rivals begin


@dataclass(frozen=True)
class Effort:
    """How long the clocks run: rounds of the interleaved timing, their length, and pytest-benchmark's own rounds, fewer
    where they take longer; no case begins after `until` on the monotonic clock."""

    rounds: int = 24
    round_seconds: float = 0.005
    budget_seconds: float = 12.0
    pedantic_rounds: int = 5
    pedantic_seconds: float = 2.0
    until: float = math.inf


# The default selection's: the whole run takes minutes.
SHORT_EFFORT = Effort(budget_seconds=6.0, pedantic_rounds=2, pedantic_seconds=0.5)
SMOKE_EFFORT = Effort(rounds=3, round_seconds=0.001, budget_seconds=2.0, pedantic_rounds=2)


@dataclass
class Contest:
    """The rivals' timings; a rival whose result is wrong, or that does not run (in time), is left out and says
    why."""

    device: Cpu = field(default_factory=Cpu)
    timings: dict[str, Timing] = field(default_factory=dict)
    rivals: dict[str, Rival] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)

    def admit(
        self,
        rival: Rival,
        answers: Callable[[], Mapping[str, Tensor]],
        truth: Mapping[str, Tensor],
        eager: Mapping[str, Tensor],
        seconds: float | None = None,
    ) -> None:
        """Let a rival take part if its answers are right: compared with the float64 truth, on eager's own
        error. With `seconds` they have to come within that time; then backward runs in this thread, where it
        can be stopped."""
        limit = nullcontext() if seconds is None else time_limit(seconds)
        try:
            with rival.context(), torch.autograd.set_multithreading_enabled(seconds is None), limit:
                found = {name: tensor.detach().clone() for name, tensor in answers().items()}
        except TimeUp:
            self.late[rival.name] = f"no answer within {seconds:.0f} s"
            return
        except Exception as error:
            self.broken[rival.name] = f"{type(error).__name__}: {error}"
            return
        try:
            assert_accurate(found, truth, eager)
        except AssertionError as error:
            self.wrong[rival.name] = str(error).partition("\n")[0]
            return
        self.errors[rival.name] = max(relative_error(found[name], right) for name, right in truth.items())
        self.rivals[rival.name] = rival

    def run(self, effort: Effort) -> None:
        if self.rivals:
            self.timings = interleave(
                list(self.rivals.values()),
                rounds=effort.rounds,
                round_seconds=effort.round_seconds,
                budget_seconds=effort.budget_seconds,
                stopwatch=self.device.stopwatch,
                before_round=self.device.before_round,
            )
            self.device.after_rounds()

    def close(self) -> None:
        """Free what the rivals hold."""
        torch._dynamo.reset()

    def facts(self, name: str) -> dict[str, object]:
        """What the result file says about a rival beside its time."""
        raise NotImplementedError

    def speedups(self, name: str) -> dict[str, Ratio]:
        """A rival beside each other one."""
        return {other: speedup(self.timings, name, other) for other in self.timings if other != name}

    def report(self, benchmark, name: str, effort: Effort, suite: str) -> None:
        """Give a rival's numbers to pytest-benchmark; fail for a wrong result and for a rival that does not run,
        skip where that is the compiler's, where time ran out, and where it takes no part."""
        # Inductor is not the package: left out where it finds no compiler, or rounds more than the tolerance allows
        give_up = pytest.skip if name.startswith(COMPILERS) else pytest.fail
        if name in self.late:
            pytest.skip(f"{name}: {self.late[name]}")
        if name in self.wrong:
            give_up(f"{name} is wrong, so it is not timed: {self.wrong[name]}")
        if name in self.broken:
            give_up(f"{name} does not run: {self.broken[name]}")
        if name not in self.rivals:
            pytest.skip(f"{name} takes no part in this case")
        rival, timing = self.rivals[name], self.timings[name]
        rounds = int(effort.pedantic_seconds / (timing.calls * timing.least)) - 1  # one warms up
        rounds = max(1, min(rounds, effort.pedantic_rounds))
        with rival.context():
            benchmark.pedantic(rival.call, rounds=rounds, iterations=timing.calls, warmup_rounds=int(rounds > 1))
        benchmark.extra_info.update(self.record(name, suite))

    def record(self, name: str, suite: str) -> dict[str, object]:
        """What the result file says about a rival."""
        timing = self.timings[name]
        return {
            "suite": suite,
            "rival": name,
            "least_ms": timing.least * 1e3,
            "median_ms": timing.median * 1e3,
            "quartiles_ms": [quartile * 1e3 for quartile in timing.quartiles],
            "rounds": len(timing.rounds),
            "calls_per_round": timing.calls,
            "relative_error": self.errors[name],
            "speedup": {over: ratio.facts() for over, ratio in self.speedups(name).items()},
            **self.facts(name),
        }
