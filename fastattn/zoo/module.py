"""What the zoo's modules share."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.module import FastModule, look
from ..core.sharded import is_distributed
from ..core.torch_state import compile_time_constant
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
    """Return the step that an activation of PyTorch or timm is, or None."""
    known = type(activation).__module__.partition(".")[0] in ("torch", "timm")
    return _ACTIVATIONS.get(type(activation).__name__.lower()) if known else None


def shapes(parameters: Iterable[dict[str, nn.Parameter | None]]) -> list[torch.Size]:
    """Return the shapes of several modules' parameters."""
    return [p.shape for own in parameters for p in own.values() if p is not None]


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

    def _note_children(self) -> None:
        """Note the parameters' shapes as well, which the description takes for given."""
        super()._note_children()
        self._described = shapes(look(self).parameters)

    def _is_as_made(self) -> bool:
        norm = self.norm()
        kept = norm is not None and norm.running_mean is not None
        tracked = not kept or (norm.track_running_stats and norm.num_batches_tracked is not None)
        return tracked and self._is_as_described()

    @compile_time_constant
    def _is_as_described(self) -> bool:
        found = shapes(self._seen.parameters)
        return found == self._described or sorted(found) == sorted(self._described)  # pruning changes their order

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm()
        by_batch = norm is not None and (norm.training or norm.running_mean is None)
        # neither a program of standard operators nor shards of a batch hand the batch's statistics on
        if self._runs_through_children() or (by_batch and (torch.compiler.is_exporting() or is_distributed(x))):
            return self._through_children(x)
        params, described = self.parameters_in_order(), self.description
        options = {"channels": self.channels, "backend": self.backend}
        if norm is None:
            return gate(x, params, described.program, described.numbers, **options)
        if not by_batch:
            at = len(params) - self.behind_norm
            params[at:at] = [norm.running_mean, norm.running_var]
            return gate(x, params, described.program, described.numbers, **options)
        count = self.normalised(x)
        out, found = gate_of_batch(x, params, described.program_of_batch, described.numbers, count=count, **options)
        if norm.running_mean is None:
            return out
        return track(out, found, count, norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum)

    behind_norm = 0  # parameters behind those of the normalisation

    def normalised(self, x: Tensor) -> int:
        """Return how many numbers of a channel are normalised together."""
        raise NotImplementedError


def track(
    out: Tensor, found: Tensor, count: int, mean: Tensor, variance: Tensor, batches: Tensor, momentum: float | None
) -> Tensor:
    """Update running statistics by those found in a batch, as nn.BatchNorm2d does, and return out."""
    with torch.no_grad():
        batches.add_(1)
        if count:
            share = 1 / float(batches) if momentum is None else momentum
            own_mean, own_variance = found.chunk(2)
            mean.lerp_(own_mean.to(mean), share)
            variance.lerp_(own_variance.to(variance) * (count / max(count - 1, 1)), share)
    return out


torch.fx.wrap("track")


class Layers(FastModule):
    """A module of the zoo that has no fast path yet: PyTorch's operators serve it, and a named fast backend raises."""

    channels: int

    def _through_children(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        return self._through_children(served_by_layers(x, self.operation, self.channels, backend=self.backend))
