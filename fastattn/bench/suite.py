"""A suite: the cases of one benchmark, who takes part in them, and how their table reads."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .contest import COMPILE, COPY, EAGER, TUNED, Contest, Effort, key_of
from .devices import Cpu
from .measures import bytes_moved_at_least, peak_bytes, saved_bytes
from .scene import Forward, Scene, setting
from .sizes import FORWARD

Selection = Literal["smoke", "default", "full"]
SHAPED = {name: name for name in ("shape", "dtype", "format", "work")}  # the columns of most tables


@dataclass(frozen=True)
class Table:
    """How the report shows a suite: all that it has to know of it, and so part of a result file.

    `columns` are what tells cases apart, title -> key of a record, "shape.0" for a part of one; `options` the keys of
    records that belong to this suite, `label` those of them that bars name. `rate` is a rate's unit and key.
    `yardsticks` are rivals that the fast ones are compared with, beside the usual. `chart` heads the suite's bars.
    `readme` says whether the table stands in a README: on a GPU "some" of it, in bfloat16 at the smallest batch.
    """

    title: str
    columns: Mapping[str, str] = field(default_factory=lambda: SHAPED)
    options: Sequence[str] = ()
    label: Sequence[str] = ()
    rate: Sequence[str] = ("GB/s", "gb_per_s")
    notes: Sequence[str] = ()
    yardsticks: Sequence[str] = ()
    chart: str | None = None
    roofline: bool = False
    readme: Literal["all", "some"] | None = None
    models: bool = False

    def facts(self) -> dict[str, Any]:
        """What a result file says about it."""
        return {name: plain(value) for name, value in vars(self).items() if value not in (None, False, ())}


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Suite:
    """A benchmark: the name of its test and that of its records, and who takes part in a case.

    A case has `work`, `shape` and `facts()`, what a result file says about it. The reference and `torch.compile` of it
    run what `eager` makes of a scene, the fast backends what `fast` makes of it, and `others` are rivals by name.
    """

    name: str
    test: str | None
    table: Table
    cases: Callable[[Selection], Iterable[Any]] = lambda selection: ()  # on a CPU
    rivals: Callable[[Any, Cpu], list[str]] = lambda case, device: []
    operation: str = ""
    scene: Callable[..., Scene] | None = None  # of a case, on a type of device
    eager: Callable[[Scene], Forward] | None = None
    fast: Callable[[Scene], Forward] = lambda scene: scene.module
    others: Mapping[str, Callable[[Scene], Forward]] = field(default_factory=dict)
    rates: Callable[[Any, float], Mapping[str, float]] = lambda case, seconds: {}  # of its own
    budget: float = math.inf  # seconds of a case's rounds on a CPU
    contest: "Callable[[Suite, Any, Effort, Cpu], SuiteContest] | None" = None  # None: of a scene

    def hold(self, case: Any, effort: Effort, device: Cpu) -> "SuiteContest":
        """The contest of a case."""
        return (self.contest or SceneContest)(self, case, effort, device)

    def forward(self, scene: Scene, name: str) -> Forward:
        """What a rival calls."""
        if name in self.others:
            return self.others[name](scene)
        if name not in (EAGER, COMPILE, TUNED):
            return self.fast(scene)
        assert self.eager is not None
        if name == EAGER:
            return self.eager(scene)
        if name == COMPILE:
            return torch.compile(self.eager(scene), dynamic=False)
        own_graphs = torch.compile(self.eager(scene), mode=TUNED, dynamic=False)

        def step(*inputs: Tensor) -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return own_graphs(*inputs)

        return step

    def captured(self, scene: Scene, name: str) -> Forward | None:
        """What a graph of it holds, if that is something else: what max-autotune finds, without its own graphs."""
        if name != TUNED or self.eager is None:
            return None
        return torch.compile(self.eager(scene), mode=f"{TUNED}-no-cudagraphs", dynamic=False)


@contextmanager
def convolutions(*, tf32: bool, search: bool) -> Iterator[None]:
    """cuDNN's arithmetic in float32, and whether it measures its algorithms."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = tf32, search
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


class SuiteContest(Contest):
    """A contest whose rivals a suite names."""

    def __init__(self, suite: Suite, case: Any, effort: Effort, device: Cpu):
        if device.launches == Cpu.launches:
            effort = replace(effort, budget_seconds=min(effort.budget_seconds, suite.budget))
        super().__init__(device, effort)
        self.suite, self.case = suite, case
        torch._dynamo.reset()  # the cases before count towards a limit of recompilations
        self.fill()
        self.run()

    def fill(self) -> None:
        """Enter the rivals."""
        raise NotImplementedError

    def facts(self, key: str) -> dict[str, Any]:
        """What the result file says about a rival beside its times."""
        raise NotImplementedError

    def record(self, key: str) -> dict[str, Any]:
        """What it says about a rival."""
        name, launch = self.seats[key]
        who = {"suite": self.suite.name, "rival": name} | ({} if launch is None else {"launch": launch})
        return who | self.times(key) | self.facts(key)


class SceneContest(SuiteContest):
    """The rivals of a scene, or of several."""

    def fill(self) -> None:
        self.held.enter_context(convolutions(tf32=False, search=False))
        self.places: dict[str, tuple[Scene, Forward, str]] = {}
        self.fill_scenes()

    def fill_scenes(self) -> None:
        """Enter the rivals of the case's scene."""
        assert self.suite.scene is not None
        scene = self.suite.scene(self.case, self.device.type)
        truths = scene.truths()
        for name in self.suite.rivals(self.case, self.device):
            self.place(name, scene, truths, name)

    def place(self, name: str, scene: Scene, truths: tuple[Mapping, Mapping], backend: str) -> None:
        """Enter one rival; a copy of x is compared with x."""
        if name == COPY:
            [x] = (x.detach() for x in scene.inputs.values())
            scene, truths = scene.alone(x), ({"out": x.double()}, {"out": x})
            forward, captured = torch.empty_like(x).copy_, None
        else:
            forward, captured = self.suite.forward(scene, name), self.suite.captured(scene, name)
        self.places[name] = scene, forward, backend
        results = partial(scene.results, captured) if captured else None
        context = partial(setting, scene.work, backend)
        self.enter(name, scene.call(forward), partial(scene.results, forward), context, *truths, results)

    def bandwidth(self, key: str) -> float:
        """Bytes by second, of those that any implementation moves."""
        scene, _, _ = self.places[self.seats[key][0]]
        return bytes_moved_at_least(scene.inputs.values(), scene.grads, scene.work) / self.seconds(key)

    def facts(self, key: str) -> dict[str, Any]:
        name, launch = self.seats[key]
        scene, forward, backend = self.places[name]
        case, seconds = scene.case, self.seconds(key)
        found = {
            "operation": self.suite.operation,
            **case.facts(),
            "images_per_s": case.shape[0] / seconds,
            "bytes_moved_at_least": round(self.bandwidth(key) * seconds),
            "gb_per_s": self.bandwidth(key) / 1e9,
            **self.suite.rates(case, seconds),
        }
        if launch is None:
            return found | self.memory(key, scene, forward, backend)
        copied = key_of(COPY, launch)
        if copied in self.timings:
            found["share_of_copy"] = self.bandwidth(key) / self.bandwidth(copied)
        return found

    def memory(self, key: str, scene: Scene, forward: Forward, backend: str) -> dict[str, Any]:
        """What a CPU's rival holds at its peak, and keeps for backward."""
        inputs, saved = list(scene.inputs.values()), None
        with self.rivals[key].context():
            peak = peak_bytes(self.rivals[key].call)
            if scene.work != FORWARD:
                own = [*scene.module.parameters(), *scene.module.buffers()]
                saved = saved_bytes(partial(forward, *inputs), own)
        return {
            "backend": backend,
            "bytes_of_x": sum(x.numel() * x.element_size() for x in inputs),
            "peak_memory_bytes": peak,
            "saved_for_backward_bytes": saved,
        }
