"""Aggressive convolution pooling by its algebra (see `fastattn.reference.interaction`): the composition of torch's
operators that serves the CPU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.interaction import Affine
from .registry import dense


def compose(x: Tensor, convs: Sequence[Affine], proj: Affine, pool_size: int) -> Tensor:
    """Do it by torch's own operators, in channels_last: they pool that many times faster than NCHW."""
    x = dense(x)
    transposed = not x.is_contiguous(memory_format=torch.channels_last)
    if transposed:
        x = _ToFormat.apply(x, torch.channels_last)
    levels = [x]
    for weight, bias in convs:
        x = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=x.shape[1])
        x = F.max_pool2d(x, pool_size, pool_size, ceil_mode=True)
        levels.append(x)
    levels = [level.permute(0, 2, 3, 1) for level in levels]  # [B, H_l, W_l, C]
    weight, bias = proj[0].flatten(1), proj[1]
    if weight.shape[1] == weight.shape[0]:
        out = F.linear(_resized_sum(levels), weight, bias)
    else:  # the bias joins the smallest level: it costs a pass there
        biases = [None] * len(convs) + [bias]
        matrices = weight.chunk(len(levels), dim=1)
        out = _resized_sum([F.linear(*each) for each in zip(levels, matrices, biases, strict=True)])
    out = out.permute(0, 3, 1, 2)
    return _ToFormat.apply(out, torch.contiguous_format) if transposed else out


def _resized_sum(maps: list[Tensor]) -> Tensor:
    """Return the sum of maps (B, H_l, W_l, C), each resized to the first one's size.

    Where that is the same, a map goes first into the one before it.
    """
    for i in range(len(maps) - 1, 0, -1):
        nests = _divides(maps[i], maps[i - 1]) and _divides(maps[i - 1], maps[0])
        maps[i - 1 if nests else 0] = _AddResized.apply(maps[i - 1 if nests else 0], maps[i])
    return maps[0]


def _divides(small: Tensor, large: Tensor) -> bool:
    """Return whether both sides of a map (B, h, w, C) divide those of another."""
    return large.shape[1] % small.shape[1] == 0 and large.shape[2] % small.shape[2] == 0


class _ToFormat(torch.autograd.Function):
    """Copy a map (B, C, H, W) to a memory format, and its gradient back to the map's own."""

    @staticmethod
    def forward(ctx, x, memory_format):
        ctx.own = torch.contiguous_format if memory_format is torch.channels_last else torch.channels_last
        return x.contiguous(memory_format=memory_format)

    @staticmethod
    def backward(ctx, grad):
        return grad.contiguous(memory_format=ctx.own), None


class _AddResized(torch.autograd.Function):
    """Add to maps (B, H, W, C) others (B, h, w, C), resized by the integer rule."""

    @staticmethod
    def forward(ctx, maps, others):
        (height, width), (h, w) = ctx.sizes = maps.shape[1:3], others.shape[1:3]
        if _divides(others, maps):
            blocks = maps.unflatten(2, (w, width // w)).unflatten(1, (h, height // h))
            return (blocks + others[:, :, None, :, None]).view(maps.shape)
        rows, columns = (_sources(*pair, maps.device) for pair in ((h, height), (w, width)))
        return others.index_select(2, columns).index_select(1, rows).add_(maps)

    @staticmethod
    def backward(ctx, grad):
        (height, width), (h, w) = ctx.sizes
        # what each source pixel is given sums up: products with matrices of zeros and ones
        rows = torch.zeros(h, height, dtype=grad.dtype, device=grad.device)
        rows[_sources(h, height, grad.device), torch.arange(height, device=grad.device)] = 1
        columns = torch.zeros(w, width, dtype=grad.dtype, device=grad.device)
        columns[_sources(w, width, grad.device), torch.arange(width, device=grad.device)] = 1
        return grad, columns @ (rows @ grad.flatten(2)).unflatten(2, (width, -1))


def _sources(size: int, resized: int, device: torch.device) -> Tensor:
    """Return the source of each place of a resized axis."""
    return torch.arange(resized, device=device) * size // resized
