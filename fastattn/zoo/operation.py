"""Gates by their descriptions: the registered operators `fastattn::gates_{forward,backward}`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.backends import declare, extension_reasons
from ..core.operation import FlatOperation, _Recorded
from . import native, reference
from .description import statistics_size


class _Gates(FlatOperation):
    """x (B, C, H, W); params are those of a program, which `Description` makes, in order."""

    server = native

    def definition(
        self, x: Tensor, params: Sequence[Tensor], program: Sequence[int], numbers: Sequence[float], **_: Any
    ) -> Tensor:
        return reference.gate(x, params, program, numbers)[0]

    def saved(self, server, x, params, options):
        return server.saved(x, options[0])


GATES = _Gates("gates", ", int[] program, float[] numbers")


class _OfBatch:
    """The operation with a second output, the statistics of the batch that it normalised by."""

    materializes = True

    def outputs(self, options, inputs, save):
        out, kept = GATES.outputs(options, inputs, True)
        x, saved, *_ = kept
        return (out, saved[saved.numel() - statistics_size(x.shape[1], options[0]) :].clone()), kept

    def gradients(self, options, kept, grads, needs):
        return GATES.gradients(options, kept, grads[:1], needs)


_OF_BATCH = _OfBatch()


def gates_of_batch(x: Tensor, params: Sequence[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
    """Run a program that normalises by the batch's statistics; return these, too."""
    x = GATES.lay(x)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
        return _Recorded.apply(_OF_BATCH, options, x, *params)
    return _OF_BATCH.outputs(options, (x, *params), True)[0]


def facts(x: Tensor, **_: Any) -> tuple:
    """Return what the limits are about: nothing."""
    return ()


def _no_kernel_yet(*_: Any) -> list[str]:
    return ["there is no kernel yet"]


declare("gates", facts, native=extension_reasons, triton=_no_kernel_yet)
for _name in ("ema", "cpca"):
    declare(_name, facts, native=_no_kernel_yet, triton=_no_kernel_yet)
