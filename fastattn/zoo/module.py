"""What the zoo's modules share."""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.module import FastModule
from .description import Description
from .functional import gate, gate_of_batch, served_by_layers

for _name in ("gate", "gate_of_batch", "served_by_layers"):
    torch.fx.wrap(_name)  # FX records the call and takes no step into it

# steps by the names of activations, as classes or strings
_ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "hardswish": "hard_swish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hard_sigmoid",
}


def step_of(activation: nn.Module) -> str | None:
    """Return the step that an activation is, or None."""
    return _ACTIVATIONS.get(type(activation).__name__.lower())


class Gate(FastModule):
    """A module that a description says all about; `_through_children` is what its paper says."""

    operation = "gates"
    channels: int | None = None  # None: any number
    description: Description

    def parameters_in_order(self) -> list[Tensor]:
        """Return the description's parameters; of a normalisation weight and bias."""
        raise NotImplementedError

    def norm(self) -> Any:
        """Return the batch normalisation in the description, if there is one."""
        return None

    def _through_children(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        params, described, norm = self.parameters_in_order(), self.description, self.norm()
        options = {"channels": self.channels, "backend": self.backend}
        if norm is None:
            return gate(x, params, described.program, described.numbers, **options)
        if not norm.training and norm.running_mean is not None:
            at = len(params) - self.behind_norm
            params[at:at] = [norm.running_mean, norm.running_var]
            return gate(x, params, described.program, described.numbers, **options)
        out, found = gate_of_batch(x, params, described.program_of_batch, described.numbers, **options)
        if norm.running_mean is not None:
            mean, variance = found.chunk(2)
            self._track(norm, mean, variance, self.normalised(x))
        return out

    behind_norm = 0  # parameters behind those of the normalisation

    def normalised(self, x: Tensor) -> int:
        """Return how many numbers of a channel are normalised together."""
        raise NotImplementedError

    @staticmethod
    def _track(norm: Any, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update running statistics, as nn.BatchNorm2d does."""
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean), share)
            norm.running_var.lerp_(variance.to(norm.running_var) * (count / max(count - 1, 1)), share)


class Layers(FastModule):
    """A module of the zoo that has no fast path yet: PyTorch's operators serve it, and a named fast backend raises."""

    channels: int

    def _through_children(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        return self._through_children(served_by_layers(x, self.operation, self.channels, backend=self.backend))
