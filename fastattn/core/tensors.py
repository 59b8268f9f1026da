"""What has to be known of a call's tensors: how they lie, and whether somebody watches what is done with them."""

import torch
from torch import Tensor

from . import torch_state

PLAIN = frozenset((Tensor, torch.nn.Parameter))  # a tensor of these is what its memory holds
_is_neg, _is_zero = Tensor.is_neg, Tensor._is_zerotensor  # fast under map


def dense(x: Tensor) -> Tensor:
    """Return x if it lies densely as NCHW or channels_last, else its one copy, in the nearer format."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    channels_last = 1 == x.stride(1) < x.stride(3)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def contiguous(x: Tensor) -> Tensor:
    """Return x if it is contiguous, else a copy."""
    return x.contiguous()


def layout(x: Tensor) -> torch.memory_format:
    """Return the memory format of a dense map."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def watched(*tensors: Tensor) -> bool:
    """Return whether anything wants to see the registered operator: a compiler, a mode or a profiler, or a tensor
    that is not what its memory holds: a subclass, a negated view, a zero without memory.

    Where nothing does, its dispatch is left out: a third of what a short call costs. x, or the output's gradient and
    x, are the first ones.
    """
    kinds = {*map(type, tensors)}
    return (
        torch.compiler.is_compiling()
        or not kinds <= PLAIN
        or (Tensor in kinds and any(map(_is_neg, tensors)))
        or any(map(_is_zero, tensors[:2]))
        or torch_state.dispatch_modes() > 0
        or torch_state.profiler_enabled()
    )
