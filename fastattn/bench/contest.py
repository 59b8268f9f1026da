"""The engine of every benchmark: rivals that do the same work, each checked, then timed in turns, then described."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.backends import BACKENDS, Call, unsupported_reasons
from .accuracy import assert_accurate, relative_error
from .devices import Cpu, Work
from .interleave import WARM_CALLS, Ratio, Rival, Timing, interleave, speedup
from .limit import TimeUp, time_limit
from .sizes import GRAPH

PLAIN, EAGER, COMPILE, TUNED, COPY = "plain", "eager", "compile", "max-autotune", "copy"
COMPILED = " compiled"  # behind the name of who computes the attention, or of the plain network, in a compiled one
COMPILERS = (COMPILE, TUNED)
RUNTIMES = ("aoti", "onnxruntime", "openvino")  # that exported networks run in
COMPILERS_ROOM = 10.0  # of their rounding: enough for other orders of sums, far less than another network
LIMITS = {TUNED: 120.0, COMPILE: 60.0}  # seconds on a GPU until a first answer, compilation and all
LIMIT, LAST_LIMIT = 100.0, 20.0  # of the others, and of all where the time is up
Results = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Effort:
    """How long the clocks run: calls that warm up, rounds of the interleaved timing, their length, and those of
    pytest-benchmark, fewer where they take longer; no case begins after `until` on the monotonic clock."""

    warm_calls: int = WARM_CALLS
    rounds: int = 24
    round_seconds: float = 0.005
    budget_seconds: float = 12.0
    pedantic_rounds: int = 5
    pedantic_seconds: float = 2.0
    until: float = math.inf


# The default selection's: the whole run takes minutes. The call whose result is checked has warmed up.
SHORT_EFFORT = Effort(warm_calls=0, budget_seconds=3.0, pedantic_rounds=2, pedantic_seconds=0.5)
SMOKE_EFFORT = Effort(rounds=3, round_seconds=0.001, budget_seconds=2.0, pedantic_rounds=2)


def fast_backends(operation: str, device_type: str) -> list[str]:
    """The backends, the reference left out, that serve an operation on a device."""
    call = Call(operation, device_type)
    return [name for name in BACKENDS if name != "reference" and not unsupported_reasons(name, call)]


def is_compiled(name: str) -> bool:
    """Whether torch.compile takes part in a rival."""
    return name.startswith(COMPILERS) or COMPILED in name


def key_of(name: str, launch: str | None) -> str:
    """What a rival is called among those of a contest."""
    return name if launch is None else f"{name}-{launch}"


def reason(error: Exception) -> str:
    """An error in one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


class Graphed:
    """Work as a graph, captured by the first call and replayed by every one."""

    def __init__(self, device: Cpu, work: Results):
        self.device, self.work = device, work
        self.replay: Work | None = None
        self.results: Mapping[str, Tensor] = {}

    def __call__(self) -> None:
        if self.replay is None:
            self.replay, self.results = self.device.capture(self.work)
        self.replay()

    def answers(self) -> Mapping[str, Tensor]:
        self()
        return self.results


class Contest:
    """Rivals on a device, on a GPU each by launches and by the replay of a graph, and compared with its like.

    One whose result is wrong (`wrong`), or that does not run (`broken`), or not in time (`late`), is left out.
    """

    def __init__(self, device: Cpu, effort: Effort, launches: Sequence[str | None] | None = None):
        self.device, self.effort = device, effort
        self.launches = launches or device.launches
        self.seats: dict[str, tuple[str, str | None]] = {}  # key -> the rival's name, and how its work is launched
        self.rivals: dict[str, Rival] = {}
        self.timings: dict[str, Timing] = {}
        self.errors: dict[str, float] = {}
        self.wrong: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.late: dict[str, str] = {}
        self.held = ExitStack()

    @property
    def failed(self) -> dict[str, str]:
        """Why rivals were left out."""
        return {**{key: f"AssertionError: {why}" for key, why in self.wrong.items()}, **self.broken, **self.late}

    def enter(
        self,
        name: str,
        call: Work,
        results: Results,
        context: Callable[[], AbstractContextManager],
        truth: Mapping[str, Tensor],
        eager: Mapping[str, Tensor],
        captured: Results | None = None,
    ) -> None:
        """Admit a rival in each way of launching: `call` does its work, `results` says what it gives, `captured` is
        what a graph holds, where that is something else."""
        graphed = Graphed(self.device, captured or results)
        for launch in self.launches:
            key = key_of(name, launch)
            self.seats[key] = name, launch
            work, answers = (graphed, graphed.answers) if launch == GRAPH else (call, results)
            if launch == GRAPH and (late := self.late.get(key_of(name, self.launches[0]))):
                self.late[key] = late
            else:
                self.admit(Rival(key, work, context), answers, truth, eager, self.limit(name))

    def limit(self, name: str) -> float | None:
        """Seconds that a rival has until its first answer, on a GPU."""
        if GRAPH not in self.launches:
            return None
        return min(LIMITS.get(name, LIMIT), max(LAST_LIMIT, self.effort.until - time.monotonic()))

    def admit(
        self,
        rival: Rival,
        answers: Results,
        truth: Mapping[str, Tensor],
        eager: Mapping[str, Tensor],
        seconds: float | None = None,
    ) -> None:
        """Let a rival take part if its answers are right: compared with the float64 truth, on eager's own
        error. With `seconds` they have to come within that time; then backward runs in this thread, where it
        can be stopped."""
        key = rival.name
        limit = nullcontext() if seconds is None else time_limit(seconds)
        try:
            with rival.context(), torch.autograd.set_multithreading_enabled(seconds is None), limit:
                found = {name: tensor.detach().clone() for name, tensor in answers().items()}
        except TimeUp:
            self.late[key] = f"no answer within {seconds:.0f} s"
            return
        except Exception as error:  # a compiler, memory
            self.broken[key] = reason(error)
            return
        try:
            room = COMPILERS_ROOM if is_compiled(key) or key.startswith(RUNTIMES) else 1.0
            assert_accurate(found, truth, eager, room=room)
        except AssertionError as error:
            self.wrong[key] = str(error).partition("\n")[0]
            return
        self.errors[key] = max(relative_error(found[name], right) for name, right in truth.items())
        self.rivals[key] = rival

    def beside(self, name: str, call: Work, context: Callable[[], AbstractContextManager] = nullcontext) -> None:
        """Let a rival take part that the others are compared with, and that computes nothing to be checked."""
        self.seats[name] = name, None
        self.rivals[name] = Rival(name, call, context)

    def run(self) -> None:
        """Time those who take part, in turns."""
        if self.rivals:
            self.timings = interleave(
                list(self.rivals.values()),
                warm_calls=self.effort.warm_calls,
                rounds=self.effort.rounds,
                round_seconds=self.effort.round_seconds,
                budget_seconds=self.effort.budget_seconds,
                stopwatch=self.device.stopwatch,
                before_round=self.device.before_round,
            )
            self.device.after_rounds()

    def close(self) -> None:
        """Free what the rivals hold."""
        self.rivals.clear()
        torch._dynamo.reset()
        self.held.close()
        self.device.release()

    def speedups(self, key: str) -> dict[str, Ratio]:
        """A rival beside each other one that is launched like it."""
        launch = self.launch(key)
        others = {self.seats[other][0]: other for other in self.timings if self.launch(other) == launch}
        return {name: speedup(self.timings, key, other) for name, other in others.items() if other != key}

    def launch(self, key: str) -> str | None:
        return self.seats[key][1]

    def seconds(self, key: str) -> float:
        """What rates go by: the least round, on a GPU the median."""
        timing = self.timings[key]
        return timing.least if self.launch(key) is None else timing.median

    def times(self, key: str) -> dict[str, Any]:
        """What a result file says about a rival's times, whatever it does."""
        timing = self.timings[key]
        return {
            "least_ms": timing.least * 1e3,
            "median_ms": timing.median * 1e3,
            "quartiles_ms": [quartile * 1e3 for quartile in timing.quartiles],
            "rounds": len(timing.rounds),
            "calls_per_round": timing.calls,
            "relative_error": self.errors.get(key),
            "speedup": {over: ratio.facts() for over, ratio in self.speedups(key).items()},
        }
