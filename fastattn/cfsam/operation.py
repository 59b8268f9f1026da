"""CFSAM by its algebra (see `fastattn.cfsam.reference`): products and convolutions are the library's, the token gather
and the partitioned attention a backend's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.backends import declare
from ..core.reference import Affine
from ..core.tensors import dense, layout
from .partition_attention import facts, limits_on_triton, partition_attention
from .reference import Block, Level, fuses_both, padded_length
from .token_gather import count_tokens, token_gather


def cfsam(
    maps: Sequence[Tensor],
    levels: Sequence[Level],
    blocks: Sequence[Block],
    num_parts: int,
    num_heads: int,
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    """Exchange features between maps (B, C_i, H_i, W_i), computing in a dtype."""
    maps = [dense(x.to(dtype)) for x in maps]
    local = [_extract(x, level) for x, level in zip(maps, levels, strict=True)]
    levels = [
        Level(level.local and _cast(level.local, dtype), _cast(level.project, dtype), _cast(level.fuse, dtype))
        for level in levels
    ]
    if not blocks:
        outs = [F.conv2d(x, *_fuse_alone(level)) for x, level in zip(local, levels, strict=True)]
        return [out.contiguous(memory_format=layout(x)) for out, x in zip(outs, maps, strict=True)]
    mixed = _transform(local, blocks, num_parts, num_heads, dtype, backend)
    parts = mixed.split([x.shape[2] * x.shape[3] for x in local], dim=1)
    return [_fuse(*given) for given in zip(local, parts, levels, map(layout, maps), strict=True)]


def _cast(affine: Affine, dtype: torch.dtype) -> Affine:
    if affine[0].dtype is dtype:
        return affine
    weight, bias = affine
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _extract(x: Tensor, level: Level) -> Tensor:
    """Return the local features (B, D, H, W), by one convolution where that takes fewer products than two."""
    if level.local is None or not _folds(x, level.local, level.project):
        for affine, padding in ((level.local, 1), (level.project, 0)):
            x = F.conv2d(x, *_cast(affine, x.dtype), padding=padding) if affine else x
        return x
    (inner, inner_bias), (outer, outer_bias) = level.local, level.project
    dim, channels = outer.shape[:2]
    outer = outer.flatten(1)  # [D, C]
    if inner.is_contiguous():
        kernel = (outer @ inner.flatten(1)).view(dim, channels, 3, 3)
    else:
        kernel = (outer @ inner.permute(0, 2, 3, 1).flatten(1)).view(dim, 3, 3, channels).permute(0, 3, 1, 2)
    bias = outer_bias
    if inner_bias is not None:
        bias = outer @ inner_bias if bias is None else torch.addmv(bias, outer, inner_bias)
    return F.conv2d(x, *_cast((kernel, bias), x.dtype), padding=1)


def _folds(x: Tensor, local: Affine, project: Affine) -> bool:
    """Return whether both convolutions are to be one.

    The product's rounding to 16 bits is the same error for all pixels, which does not average out in the gradients of
    parameters: those of 16 bits are folded for inference alone, those of float32 once, under autocast too.
    """
    (inner, _), (outer, _) = local, project
    if inner.dtype.itemsize < 4 and torch.is_grad_enabled() and (inner.requires_grad or outer.requires_grad):
        return False
    batch, channels, height, width = x.shape
    dim = outer.shape[0]
    # products per channel of x; a compiler is not asked about its batch, which would become a condition on it
    pixels = height * width if torch.compiler.is_compiling() else batch * height * width
    return pixels * 9 * dim + 9 * channels * dim < pixels * (9 * channels + dim)


def _transform(
    local: Sequence[Tensor], blocks: Sequence[Block], num_parts: int, num_heads: int, dtype: torch.dtype, backend: str
) -> Tensor:
    """Run the blocks over the tokens of all levels; return (B, N, D)."""
    tokens = count_tokens(local)
    length = padded_length(tokens, num_parts)
    y, normed = token_gather(local, None, blocks[0].norm1, length, backend)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        q, k, v = _projections(normed, block, dtype)
        attended = F.linear(partition_attention(q, k, v, num_parts, num_heads, backend), *_cast(block.proj, dtype))
        y, normed = token_gather([y], attended, block.norm2, length, backend)
        hidden = F.gelu(F.linear(normed, *_cast(block.mlp_in, dtype)))
        change = F.linear(hidden, *_cast(block.mlp_out, dtype))
        norm, length = (following.norm1, length) if following else (None, tokens)
        y, normed = token_gather([y], change, norm, length, backend)
    return y


def _projections(normed: Tensor, block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v; without k's bias, which the softmax drops."""
    weight, bias = block.k
    q, v = (F.linear(normed, *_cast(affine, dtype)) for affine in (block.q, block.v))
    k = F.linear(normed, weight.to(dtype))
    learns = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    return q, _Unaffected.apply(k, bias) if learns else k, v


class _Unaffected(torch.autograd.Function):
    """Pass a tensor through, and give a parameter that has no effect its gradient: zero."""

    @staticmethod
    def forward(ctx, x, parameter):
        ctx.like = parameter.shape, parameter.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        shape, dtype = ctx.like
        return grad, grad.new_zeros(shape, dtype=dtype)


def _fuse_alone(level: Level) -> Affine:
    """Return the fusion where L' is L: the sum of its two halves."""
    weight, bias = level.fuse
    if fuses_both(level):
        own, other = weight.chunk(2, dim=1)
        weight = own + other
    return weight, bias


def _fuse(own: Tensor, other: Tensor, level: Level, memory_format: torch.memory_format) -> Tensor:
    """Map local features (B, D, H, W) and tokens (B, H * W, D) to (B, C, H, W)."""
    weight, bias = level.fuse
    halves = weight.flatten(1).chunk(2 if fuses_both(level) else 1, dim=1)
    sources = (own.flatten(2).mT, other)[-len(halves) :]  # [B, HW, D]
    pixels, transposed = own.shape[2:], memory_format is torch.contiguous_format
    weights = [w.expand(own.shape[0], *w.shape) for w in halves]
    pairs = [(w, t.mT) if transposed else (t, w.mT) for w, t in zip(weights, sources, strict=True)]
    out = torch.bmm(*pairs[0])  # [B, C, HW] or [B, HW, C]
    for factors in pairs[1:]:
        out.baddbmm_(*factors)
    if bias is not None:
        out += bias[:, None] if transposed else bias
    return (out if transposed else out.mT).unflatten(2, pixels)


declare("cfsam", facts, triton=limits_on_triton)  # those of its attention
