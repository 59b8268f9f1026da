"""Gates on plain tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.backends import serving, without_autocast
from ..core.checks import check_map, check_tensor
from ..core.reference import known_equal
from ..core.sharded import by_shards
from . import operation, reference
from .description import POOLS


@by_shards("x")
def gate(
    x: Tensor,
    params: Sequence[Tensor],
    program: Sequence[int],
    numbers: Sequence[float],
    *,
    channels: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Gate x (B, C, H, W) as a description's program and numbers say (`fastattn.zoo.description`).

    Weights of pixels, (C, h, w), are of x pooled to (h, w). ValueError for another number of channels than `channels`;
    RuntimeError with the reasons where a named backend cannot serve.
    """
    fast, params = _prepare(x, params, program, channels, backend)
    if not fast:
        return reference.gate(x, params, program, numbers)[0]
    with without_autocast(x):
        return operation.GATES(x, params, program, numbers)


@by_shards("x")
def gate_of_batch(
    x: Tensor,
    params: Sequence[Tensor],
    program: Sequence[int],
    numbers: Sequence[float],
    *,
    count: int,
    channels: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Do the same by a program that normalises by the batch's means and variances, of `count` numbers each, and return
    these, too; ValueError for one number, as nn.BatchNorm2d has it."""
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    fast, params = _prepare(x, params, program, channels, backend)
    if not fast:
        return reference.gate(x, params, program, numbers)
    with without_autocast(x):
        return operation.gates_of_batch(x, params, program, numbers)


@by_shards("x")
def served_by_layers(x: Tensor, operation: str, channels: int, *, backend: str | None = None) -> Tensor:
    """Return x for the layers of a module that has no fast path yet; RuntimeError where a fast backend is named."""
    check_map(x, channels)
    serving(operation, x, x.dtype, backend)
    return x


def _prepare(
    x: Tensor, params: Sequence[Tensor], program: Sequence[int], channels: int | None, backend: str | None
) -> tuple[bool, Sequence[Tensor]]:
    """Return whether a fast path serves, and the parameters, weights of pixels for maps of x's size."""
    check_tensor(x, "x")
    check_map(x, x.shape[1] if channels is None and x.dim() == 4 else channels or 0)
    other = next((p.dtype for p in params if p.dtype is not x.dtype), x.dtype)
    name, _ = serving("gates", x, other, backend)
    if POOLS[program[0]] == "weighted" and not known_equal(params[0].shape[1:], x.shape[2:]):
        rows, columns = (_shares(*sides, params[0]) for sides in zip(params[0].shape[1:], x.shape[2:], strict=True))
        params = [rows.mT @ params[0] @ columns, *params[1:]]
    return name != "reference" and x.numel() > 0, params


def _shares(side: int, pixels: int, like: Tensor) -> Tensor:
    """The shares (side, pixels) of an axis's pixels in what adaptive average pooling makes of them."""
    starts = torch.arange(side, device=like.device) * pixels // side
    ends = -(-torch.arange(1, side + 1, device=like.device) * pixels // side)
    at = torch.arange(pixels, device=like.device)
    inside = (at >= starts[:, None]) & (at < ends[:, None])
    return inside.to(like.dtype) / (ends - starts)[:, None]
