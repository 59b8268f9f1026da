"""A scene: the tensors of one case, the same for every rival, and the work that is timed on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import use_backend
from ..core.backends import BACKENDS
from .contest import EAGER
from .sizes import FORWARD

Forward = Callable[..., Any]  # inputs -> a tensor or several


@contextmanager
def setting(work: str, backend: str) -> Iterator[None]:
    """Grad mode and backend of a round; what is no backend's name calls its implementation itself."""
    chosen = use_backend(backend) if backend in BACKENDS else nullcontext()
    with torch.set_grad_enabled(work != FORWARD), chosen:
        yield


def outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def of_first(exact: Callable[[Any], Forward], images: int, module: Any) -> Forward:
    """The reference of a module on the first images alone."""
    forward = exact(module)
    return lambda *inputs: forward(*(x[:images] for x in inputs))


class Scene:
    """Inputs by name, a module, and the gradients that come in, the same for every rival of a case.

    `exact` makes the reference of a module, which computes the truth; where it would take too long, it computes what
    `pick` leaves of an output, and the gradients that come in are zero elsewhere. Of a forward pass it computes the
    first so many `images` alone, where that is given: float64 is slow, and every image takes the same path.
    """

    def __init__(
        self,
        case: Any,
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        grads: Sequence[Tensor],
        exact: Callable[[Any], Forward],
        pick: Callable[[Tensor], Tensor] = lambda out: out,
        images: int | None = None,
    ):
        if images is not None and case.work == FORWARD:
            exact, pick = partial(of_first, exact, images), lambda out: out[:images]
        self.case, self.module, self.grads = case, module, list(grads)
        self.exact, self.pick, self.work = exact, pick, case.work
        self.inputs = {name: x.detach().requires_grad_(case.work != FORWARD) for name, x in inputs.items()}

    def alone(self, x: Tensor) -> "Scene":
        """The same case with a tensor in place of everything, and nothing to learn."""
        scene = Scene(self.case, nn.Module(), {}, [x], self.exact)
        scene.inputs, scene.work = {"x": x}, FORWARD
        return scene

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

        return infer if self.work == FORWARD else train

    def results(self, forward: Forward) -> dict[str, Tensor]:
        """What one call computes, where it computes it: the outputs, and in training every gradient by name."""
        outs = [self.pick(out.detach()) for out in outputs(self.call(forward)())]
        found = {"out": outs[0]} if len(outs) == 1 else {f"out {i}": out for i, out in enumerate(outs)}
        if self.work != FORWARD:
            found |= {f"grad {name}": leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        return found

    def answers(self, forward: Forward) -> dict[str, Tensor]:
        """A copy of what one call computes."""
        return {name: tensor.clone() for name, tensor in self.results(forward).items()}

    def truths(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The answers in float64, and eager's own in the case's dtype."""
        exact = self.in_float64()
        with setting(self.work, EAGER):
            return exact.answers(exact.exact(exact.module)), self.answers(self.exact(self.module))
