"""Rivals on a GPU: each one by launches and by the replay of a CUDA graph, compared with its like.

torch.compile's max-autotune replays graphs of its own; it stands among the launches, as a user would call it, and
among the graphs stands what its search found, captured as for everybody else.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastattn import models
from fastattn.bench.devices import Cpu, Work
from fastattn.bench.interleave import Ratio, Rival, speedup
from fastattn.bench.networks import inference, prepare
from fastattn.bench.photographs import noise

from .cfsam import (
    attention_forward,
    attention_rivals,
    attention_scene,
    operations,
    pyramid_forward,
    pyramid_rivals,
    pyramid_scene,
)
from .contest import Contest, Effort
from .interaction import COMPOSED, interaction_forward, interaction_rivals, interaction_scene
from .lga import lga_forward, lga_rivals, lga_scene
from .measures import bytes_moved_at_least
from .models import PLAIN
from .scene import COMPILE, COPY, EAGER, TUNED, Forward, Scene, fast_backends, setting
from .scsa import EagerSCSA, scsa_scene
from .shapes import (
    FORWARD,
    GRAPH,
    LAUNCHES,
    MEMORY_FORMATS,
    AcpCase,
    AttentionCase,
    Case,
    CatCase,
    LgaCase,
    ModelCase,
    PyramidCase,
    name_of,
)

LIMITS = {TUNED: 120.0, COMPILE: 60.0}  # seconds until a first answer, compilation and all
LIMIT, LAST_LIMIT = 100.0, 20.0  # of the others, and of all where the part's time is up
CHECKED_IMAGES = 2
Results = Callable[[], Mapping[str, Tensor]]


def rival(name: str, launch: str) -> str:
    return f"{name}-{launch}"


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


class GpuContest(Contest):
    """Rivals by launches and by graph; the subclasses say which."""

    suite = "model"

    def __init__(self, effort: Effort, device: Cpu):
        super().__init__(device)
        self.effort = effort
        self.seats: dict[str, tuple[str, str]] = {}
        self.held = ExitStack()

    def compete(
        self,
        name: str,
        call: Work,
        results: Results,
        captured: Results,
        context: Callable[[], AbstractContextManager],
        truth: Mapping[str, Tensor],
        eager: Mapping[str, Tensor],
    ) -> None:
        """Admit a rival: `call` does its work, `results` says what it gives, `captured` is what a graph holds."""
        left = max(LAST_LIMIT, self.effort.until - time.monotonic())
        seconds = min(LIMITS.get(name, LIMIT), left)
        graphed = Graphed(self.device, captured)
        for launch, work, answers in ((LAUNCHES, call, results), (GRAPH, graphed, graphed.answers)):
            key = rival(name, launch)
            self.seats[key] = name, launch
            if launch == GRAPH and (reason := self.late.get(rival(name, LAUNCHES))):
                self.late[key] = reason
            else:
                self.admit(Rival(key, work, context), answers, truth, eager, seconds)

    def speedups(self, name: str) -> dict[str, Ratio]:
        others = {self.seats[other][0]: other for other in self.timings if self.alike(name, other)}
        return {label: speedup(self.timings, name, other) for label, other in others.items()}

    def alike(self, name: str, other: str) -> bool:
        return other != name and self.seats[other][1] == self.seats[name][1]

    def close(self) -> None:
        self.rivals.clear()
        super().close()
        self.held.close()
        self.device.release()


class GpuSceneContest(GpuContest):
    """The rivals of a scene, by name; the subclasses say which scene, and what its rivals call."""

    operation: str

    def __init__(self, case: Any, effort: Effort, device: Cpu, names: Sequence[str]):
        super().__init__(effort, device)
        torch._dynamo.reset()
        self.held.enter_context(convolutions(tf32=False, search=False))
        self.scene = self.build(case)
        truths = self.scene.truths()
        for name in names:
            self.enter(name, *truths)
        self.run(effort)

    def build(self, case: Any) -> Scene:
        raise NotImplementedError

    def forwards(self, name: str) -> tuple[Forward, Forward]:
        """What a rival calls, and what it captures."""
        raise NotImplementedError

    def enter(self, name: str, truth: Mapping[str, Tensor], eager: Mapping[str, Tensor]) -> None:
        scene, (forward, captured) = self.scene, self.forwards(name)
        self.compete(
            name,
            scene.call(forward),
            partial(scene.results, forward),
            partial(scene.results, captured),
            partial(setting, scene.case.work, name),
            truth,
            eager,
        )

    def bytes_moved(self, name: str) -> int:
        """What any implementation moves that does a rival's work."""
        return bytes_moved_at_least(self.scene.inputs.values(), self.scene.grads, self.scene.case.work)

    def bandwidth(self, name: str) -> float:
        return self.bytes_moved(self.seats[name][0]) / self.timings[name].median

    def facts(self, name: str) -> dict[str, object]:
        label, launch = self.seats[name]
        case = self.scene.case
        return {
            "operation": self.operation,
            **case.facts(),
            "rival": label,
            "launch": launch,
            "images_per_s": case.shape[0] / self.timings[name].median,
            "bytes_moved_at_least": self.bytes_moved(label),
            "gb_per_s": self.bandwidth(name) / 1e9,
        }


class GpuScsaContest(GpuSceneContest):
    """SCSA, beside a copy on the device."""

    operation = "scsa"

    def __init__(self, case: Case, effort: Effort, device: Cpu, names: Sequence[str]):
        super().__init__(case, effort, device, names)
        self.suite = "tuned" if TUNED in names else "module"

    def build(self, case: Case) -> Scene:
        return scsa_scene(case, self.device.type)

    def forwards(self, name: str) -> tuple[Forward, Forward]:
        reference = EagerSCSA(self.scene.module)
        if name == TUNED:
            own_graphs = torch.compile(reference, mode=TUNED, dynamic=False)

            def step(x: Tensor) -> Tensor:
                torch.compiler.cudagraph_mark_step_begin()
                return own_graphs(x)

            return step, torch.compile(reference, mode=f"{TUNED}-no-cudagraphs", dynamic=False)
        forward: Forward = reference
        if name == COMPILE:
            forward = torch.compile(reference, dynamic=False)
        elif name != EAGER:
            forward = self.scene.module
        return forward, forward

    def enter(self, name: str, truth: Mapping[str, Tensor], eager: Mapping[str, Tensor]) -> None:
        if name != COPY:
            super().enter(name, truth, eager)
            return
        x = self.scene.inputs["x"].detach()
        out = torch.empty_like(x)

        def results() -> dict[str, Tensor]:
            return {"out": out.copy_(x)}

        context = partial(setting, FORWARD, COPY)
        self.compete(COPY, partial(out.copy_, x), results, results, context, {"out": x.double()}, {"out": x})

    def bytes_moved(self, name: str) -> int:
        x = self.scene.inputs["x"]
        return bytes_moved_at_least([x], [x], FORWARD) if name == COPY else super().bytes_moved(name)

    def facts(self, name: str) -> dict[str, object]:
        copied = rival(COPY, self.seats[name][1])
        share = self.bandwidth(name) / self.bandwidth(copied) if copied in self.timings else None
        return super().facts(name) | {"share_of_copy": share}


class GpuAttentionContest(GpuSceneContest):
    """CFSAM's attention alone."""

    suite, operation = "attention", "partition_attention"

    def build(self, case: AttentionCase) -> Scene:
        return attention_scene(case, self.device.type)

    def forwards(self, name: str) -> tuple[Forward, Forward]:
        forward = attention_forward(self.scene.case, name)
        return forward, forward

    def facts(self, name: str) -> dict[str, object]:
        rate = operations(self.scene.case) / self.timings[name].median
        return super().facts(name) | {"gflop_per_s": rate / 1e9}


class GpuPyramidContest(GpuSceneContest):
    """CFSAM as a module."""

    suite, operation = "pyramid", "cfsam"

    def build(self, case: PyramidCase) -> Scene:
        return pyramid_scene(case, self.device.type)

    def forwards(self, name: str) -> tuple[Forward, Forward]:
        forward = pyramid_forward(self.scene, name)
        return forward, forward


def cfsam_contest(case: AttentionCase | PyramidCase, effort: Effort, device: Cpu) -> GpuSceneContest:
    """CFSAM or its attention, with those who take part in the case."""
    if isinstance(case, AttentionCase):
        return GpuAttentionContest(case, effort, device, attention_rivals(case, device))
    return GpuPyramidContest(case, effort, device, pyramid_rivals(case, device))


class GpuLgaContest(GpuSceneContest):
    """LGA as a module, with those who take part in the case."""

    suite, operation = "lga", "lga"

    def __init__(self, case: LgaCase, effort: Effort, device: Cpu):
        super().__init__(case, effort, device, lga_rivals(case, device))

    def build(self, case: LgaCase) -> Scene:
        return lga_scene(case, self.device.type)

    def forwards(self, name: str) -> tuple[Forward, Forward]:
        forward = lga_forward(self.scene, name)
        return forward, forward


class GpuInteractionContest(GpuSceneContest):
    """ACP or CAT as a module, with those who take part in the case; what serves a CPU takes no part."""

    def __init__(self, case: AcpCase | CatCase, effort: Effort, device: Cpu):
        self.suite = self.operation = case.operation
        names = [name for name in interaction_rivals(case, device) if name != COMPOSED]
        super().__init__(case, effort, device, names)

    def build(self, case: AcpCase | CatCase) -> Scene:
        return interaction_scene(case, self.device.type)

    def forwards(self, name: str) -> tuple[Forward, Forward]:
        forward = interaction_forward(self.scene, name)
        return forward, forward


class GpuModelContest(GpuContest):
    """A whole model in inference: plain, with SCSA eager, with SCSA by each fast backend."""

    def __init__(self, case: ModelCase, effort: Effort, device: Cpu):
        super().__init__(effort, device)
        self.case = case
        self.held.enter_context(convolutions(tf32=True, search=True))  # as networks are run
        layout = MEMORY_FORMATS[case.memory_format]
        images = noise(case.batch).to(device.type)
        x = images.to(case.dtype).contiguous(memory_format=layout)
        for attention, names in ((None, [PLAIN]), ("scsa", [EAGER, *fast_backends(device)])):
            torch.manual_seed(0)
            model = prepare(models.create(case.model, attention=attention).to(device.type), images)
            model = model.to(case.dtype).to(memory_format=layout)

            def logits(model: nn.Module = model) -> dict[str, Tensor]:
                return {"logits": model(x)[:CHECKED_IMAGES]}

            with inference("reference"):
                truth = {"logits": deepcopy(model).double()(x[:CHECKED_IMAGES].double())}
                eager = logits()
            for name in names:
                context = partial(inference, "reference" if name in (PLAIN, EAGER) else name)
                self.compete(name, partial(model, x), logits, logits, context, truth, eager)
        self.run(effort)

    def facts(self, name: str) -> dict[str, object]:
        label, launch = self.seats[name]
        return {
            "operation": "scsa",
            "work": FORWARD,
            "model": self.case.model,
            "attention": "none" if label == PLAIN else "scsa",
            "shape": [self.case.batch, 3, 224, 224],
            "dtype": name_of(self.case.dtype),
            "format": self.case.memory_format,
            "rival": label,
            "launch": launch,
            "images": "noise",
            "images_per_s": self.case.batch / self.timings[name].median,
        }
