"""A scene: the tensors of one case, the same for every rival, and the work that is timed on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn.bench.devices import Cpu
from fastattn.bench.interleave import Rival
from fastattn.core import backends

from .contest import Contest, Effort
from .measures import bytes_moved_at_least, peak_bytes, saved_bytes
from .shapes import FORWARD

EAGER, COMPILE, TUNED, COPY = "eager", "compile", "max-autotune", "copy"
Forward = Callable[..., Any]  # inputs -> a tensor or several


def fast_backends(device: Cpu, operation: str = "scsa") -> list[str]:
    """The backends, the reference left out, that serve an operation on a device."""
    call = backends.Call(operation, device.type)
    return [name for name in backends.BACKENDS if name != "reference" and not backends.unsupported_reasons(name, call)]


@contextmanager
def setting(work: str, backend: str) -> Iterator[None]:
    """Grad mode and backend of a round; what is no backend's name calls its implementation itself."""
    chosen = fastattn.use_backend(backend) if backend in backends.BACKENDS else nullcontext()
    with torch.set_grad_enabled(work != FORWARD), chosen:
        yield


def outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


class Scene:
    """Inputs by name, a module, and the gradients that come in, the same for every rival of a case.

    `exact` makes the reference of a module, which computes the truth; where it would take too long, it computes what
    `pick` leaves of an output, and the gradients that come in are zero elsewhere.
    """

    def __init__(
        self,
        case: Any,
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        grads: Sequence[Tensor],
        exact: Callable[[Any], Forward],
        pick: Callable[[Tensor], Tensor] = lambda out: out,
    ):
        self.case, self.module, self.grads = case, module, list(grads)
        self.exact, self.pick = exact, pick
        self.inputs = {name: x.detach().requires_grad_(case.work != FORWARD) for name, x in inputs.items()}

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What has a gradient: inputs and parameters."""
        return {**self.inputs, **dict(self.module.named_parameters())}

    def in_float64(self) -> "Scene":
        inputs = {name: x.double() for name, x in self.inputs.items()}
        module = deepcopy(self.module).double()
        return Scene(self.case, module, inputs, [grad.double() for grad in self.grads], self.exact, self.pick)

    def call(self, forward: Forward) -> Callable[[], Any]:
        """The work that is timed, with `forward` in it."""
        inputs, grads, leaves = list(self.inputs.values()), self.grads, list(self.leaves.values())

        def infer() -> Any:
            return forward(*inputs)

        def train() -> Any:
            for leaf in leaves:
                leaf.grad = None
            out = forward(*inputs)
            torch.autograd.backward(out, grads)
            return out

        return infer if self.case.work == FORWARD else train

    def results(self, forward: Forward) -> dict[str, Tensor]:
        """What one call computes, where it computes it: the outputs, and in training every gradient by name."""
        outs = [self.pick(out.detach()) for out in outputs(self.call(forward)())]
        found = {"out": outs[0]} if len(outs) == 1 else {f"out {i}": out for i, out in enumerate(outs)}
        if self.case.work != FORWARD:
            found |= {f"grad {name}": leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        return found

    def answers(self, forward: Forward) -> dict[str, Tensor]:
        """A copy of what one call computes."""
        return {name: tensor.clone() for name, tensor in self.results(forward).items()}

    def truths(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The answers in float64, and eager's own in the case's dtype."""
        exact = self.in_float64()
        with setting(self.case.work, EAGER):
            return exact.answers(exact.exact(exact.module)), self.answers(self.exact(self.module))


class SceneContest(Contest):
    """Rivals on scenes; the subclasses say which."""

    operation = "scsa"

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
        case, inputs = scene.case, list(scene.inputs.values())
        saved = None
        with self.rivals[name].context():
            peak = peak_bytes(self.rivals[name].call)
            if case.work != FORWARD:
                saved = saved_bytes(partial(forward, *inputs), scene.module.parameters())
        moved, seconds = bytes_moved_at_least(inputs, scene.grads, case.work), self.timings[name].least
        return {
            "operation": self.operation,
            **case.facts(),
            "backend": backend,
            "images_per_s": case.shape[0] / seconds,
            "bytes_moved_at_least": moved,
            "gb_per_s": moved / seconds / 1e9,
            "bytes_of_x": sum(x.numel() * x.element_size() for x in inputs),
            "peak_memory_bytes": peak,
            "saved_for_backward_bytes": saved,
        }
