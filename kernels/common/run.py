"""Running the launches of a plan on the tensors of one call."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.parameters import check_memory
from . import tuning
from .launch import Argument, Launch, flat

_HERE = contextlib.nullcontext()


def run(launches: Sequence[Launch], arguments: tuple[Argument, ...], tensors: Sequence[Tensor] | None = None) -> None:
    """Launch on the device of the tensors, whichever is current; RuntimeError where they are on several.

    `tensors` are those of the arguments, where the caller has them at hand.
    """
    if tensors is None:
        tensors = flat(arguments)
    device = tensors[0].device
    if device.type != "meta":  # where launches are only noted
        check_memory(*tensors)
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else _HERE:
        for launch in launches:
            if tuning.active:
                tuning.tune(launch, arguments)
            launch(arguments)
