"""SCSA's rivals: eager and torch.compile of the reference, and fastattn's own backends, on the same
tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn import reference

from .contest import Contest, Effort
from .interleave import Rival
from .measures import bytes_moved_at_least, peak_bytes, saved_bytes
from .shapes import FORWARD, MEMORY_FORMATS, Case, name_of

EAGER, COMPILE, TUNED, COPY = "eager", "compile", "max-autotune", "copy"
Forward = Callable[[Tensor], Tensor]


def fast_backends() -> list[str]:
    """The backends, the reference left out, that serve the CPU here."""
    return [
        name for name in fastattn.available_backends() if name not in ("auto", "reference", "triton", "cuda")
    ]


class EagerSCSA(nn.Module):
    """The reference on the parameters of an SCSA module, without any dispatch: what eager and
    torch.compile run."""

    def __init__(self, module: fastattn.SCSA):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        convolutions = (m.local_dwc, m.global_dwc_s, m.global_dwc_m, m.global_dwc_l)
        return reference.scsa(
            x,
            [convolution.weight for convolution in convolutions],
            [convolution.bias for convolution in convolutions],
            (m.norm_h.weight, m.norm_h.bias),
            (m.norm_w.weight, m.norm_w.bias),
            (m.norm.weight, m.norm.bias),
            (m.q.weight, m.k.weight, m.v.weight),
        )


@contextmanager
def setting(work: str, backend: str) -> Iterator[None]:
    """Grad mode and backend of a round; eager and torch.compile call the reference themselves."""
    chosen = nullcontext() if backend in (EAGER, COMPILE, TUNED, COPY) else fastattn.use_backend(backend)
    with torch.set_grad_enabled(work != FORWARD), chosen:
        yield


class Scene:
    """A module, an input and an incoming gradient, the same for every rival of a case."""

    def __init__(self, case: Case, device: str = "cpu"):
        generator = torch.Generator().manual_seed(0)
        layout = MEMORY_FORMATS[case.memory_format]

        def random(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.case = case
        self.module = fastattn.SCSA(case.shape[1])
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                center = 1.0 if name.startswith("norm") and name.endswith("weight") else 0.0
                parameter.copy_(center + 0.3 * random(tuple(parameter.shape)))
        self.module.to(device, case.dtype)
        self.x = random(case.shape).to(device, case.dtype).contiguous(memory_format=layout)
        self.grad_out = random(case.shape).to(device, case.dtype).contiguous(memory_format=layout)
        self.x.requires_grad_(case.work != FORWARD)

    def in_float64(self) -> "Scene":
        exact = object.__new__(Scene)
        exact.case = replace(self.case, dtype=torch.float64)
        exact.module = deepcopy(self.module).double()
        exact.x = self.x.detach().double().requires_grad_(self.x.requires_grad)
        exact.grad_out = self.grad_out.double()
        return exact

    def call(self, forward: Forward) -> Callable[[], Tensor]:
        """The work that is timed, with `forward` in it."""
        x, grad_out, parameters = self.x, self.grad_out, list(self.module.parameters())

        def infer() -> Tensor:
            return forward(x)

        def train() -> Tensor:
            x.grad = None
            for parameter in parameters:
                parameter.grad = None
            out = forward(x)
            out.backward(grad_out)
            return out

        return infer if self.case.work == FORWARD else train

    def results(self, forward: Forward) -> dict[str, Tensor]:
        """What one call computes, where it computes it: the output, and in training every gradient by name."""
        found = {"out": self.call(forward)().detach()}
        if self.case.work != FORWARD:
            leaves = {"x": self.x, **dict(self.module.named_parameters())}
            found |= {f"grad {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        return found

    def answers(self, forward: Forward) -> dict[str, Tensor]:
        """A copy of what one call computes."""
        return {name: tensor.clone() for name, tensor in self.results(forward).items()}

    def truths(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The answers in float64, and eager's own in the case's dtype."""
        exact = self.in_float64()
        with setting(self.case.work, EAGER):
            return exact.answers(EagerSCSA(exact.module)), self.answers(EagerSCSA(self.module))


class ScsaContest(Contest):
    """Rivals of SCSA; the subclasses say which."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[str, tuple[Scene, Forward, str]] = {}

    def enter(self, name: str, scene: Scene, forward: Forward, backend: str) -> None:
        self.entries[name] = (scene, forward, backend)

    def check_and_run(self, effort: Effort) -> None:
        scenes = {id(scene): scene for scene, _, _ in self.entries.values()}
        truths = {key: scene.truths() for key, scene in scenes.items()}
        for name, (scene, forward, backend) in self.entries.items():
            rival = Rival(name, scene.call(forward), partial(setting, scene.case.work, backend))
            if backend == COPY:
                self.rivals[name], self.errors[name] = rival, 0.0
            else:
                self.admit(rival, partial(scene.answers, forward), *truths[id(scene)])
        self.run(effort)

    def facts(self, name: str) -> dict[str, object]:
        scene, forward, backend = self.entries[name]
        case, x = scene.case, scene.x
        saved = None
        with self.rivals[name].context():
            peak = peak_bytes(self.rivals[name].call)
            if case.work != FORWARD:
                saved = saved_bytes(partial(forward, x), scene.module.parameters())
        moved, seconds = bytes_moved_at_least(x, case.work), self.timings[name].least
        return {
            "operation": "scsa",
            "work": case.work,
            "shape": list(case.shape),
            "dtype": name_of(case.dtype),
            "format": case.memory_format,
            "backend": backend,
            "images_per_s": case.shape[0] / seconds,
            "bytes_moved_at_least": moved,
            "gb_per_s": moved / seconds / 1e9,
            "bytes_of_x": x.numel() * x.element_size(),
            "peak_memory_bytes": peak,
            "saved_for_backward_bytes": saved,
        }


class BackendContest(ScsaContest):
    """Eager, torch.compile of the reference with static shapes, and every fast backend, on one case."""

    def __init__(self, case: Case, effort: Effort):
        super().__init__()
        scene = Scene(case)
        eager = EagerSCSA(scene.module)
        torch._dynamo.reset()  # the cases before count towards a limit of recompilations
        self.enter(EAGER, scene, eager, EAGER)
        self.enter(COMPILE, scene, torch.compile(eager, dynamic=False), COMPILE)
        for backend in fast_backends():
            self.enter(backend, scene, scene.module, backend)
        self.check_and_run(effort)


class CopyContest(ScsaContest):
    """Every fast backend against out.copy_(x), the least that touches as much memory."""

    def __init__(self, case: Case, effort: Effort):
        super().__init__()
        scene = Scene(case)
        self.enter(COPY, scene, torch.empty_like(scene.x).copy_, COPY)
        for backend in fast_backends():
            self.enter(backend, scene, scene.module, backend)
        self.check_and_run(effort)


class PrecisionContest(ScsaContest):
    """The same fast backend in float32 and in bfloat16."""

    def __init__(self, case: Case, effort: Effort):
        super().__init__()
        for dtype in (torch.float32, torch.bfloat16):
            scene = Scene(replace(case, dtype=dtype))
            for backend in fast_backends()[:1]:
                self.enter(name_of(dtype), scene, scene.module, backend)
        self.check_and_run(effort)
