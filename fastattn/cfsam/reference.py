"""CFSAM, cross-layer feature self-attention over a pyramid (arXiv 2510.14726, equations 1-5), in eager PyTorch.

    L_i = conv1x1(conv3x3(F_i))                local extraction, (B, D, H_i, W_i), no activation between
    L   = the pixels of all levels as tokens   (B, N, D), N = sum of H_i * W_i
    L'  = the blocks on L                      each: y + proj(attention(norm1(y))), then y + mlp(norm2(y))
    R_i = conv1x1(concat(L, L')) split again   (B, C_i, H_i, W_i)

A token attends to the tokens of its own part, over all levels: part p holds the tokens p, p + P, p + 2P, ... No code
is published; what the text leaves open is decided here: where P does not divide N, the tokens are resized linearly to
the next multiple M before the blocks, and back after them. Equation 5 prints one 1x1 convolution on the whole matrix
of tokens; here each level has its own: maps differ in channels, and so the parameters of the paper's Table 4 come out,
45.16 M with SSD300.

What the fast paths use, each exact up to rounding:

- Nothing stands between the two convolutions, so they are one 3x3 convolution C_i -> D whose kernel is the product
  of theirs, and its bias the 1x1 of the first one's: B * HW * 9 * C * D products and 9 * C^2 * D for the kernel
  instead of B * HW * C * (9 * C + D). Padding adds zeros to the input, not to what the first bias makes of it, so
  this holds at the borders too.
- With q, k and v contiguous, token n = j * P + p makes `view(B, N // P, P * heads, d)` the parts as further heads:
  partitioning copies nothing.
- fuse(concat(L, L')) = W_a L + W_b L': nothing is concatenated.
- A resized token has two taps, token o of M the source (o + 1/2) * N / M - 1/2: they are read in the gather.
- k.bias adds the same to all scores of a row, and the softmax drops it: its gradient is zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.reference import Affine, known_equal
from ..core.torch_state import transformed

EPSILON = 1e-5  # of every LayerNorm


class Level(NamedTuple):
    """A level's convolutions: 3x3 (or none) and 1x1 of the local extraction, 1x1 of the fusion."""

    local: Affine | None
    project: Affine
    fuse: Affine


class Block(NamedTuple):
    """A transformer block's parameters."""

    norm1: Affine
    q: Affine
    k: Affine
    v: Affine
    proj: Affine
    norm2: Affine
    mlp_in: Affine
    mlp_out: Affine


def padded_length(tokens: int, num_parts: int) -> int:
    """Return the next multiple of num_parts."""
    return (tokens + num_parts - 1) // num_parts * num_parts  # exporters round what is negative towards zero


def fuses_both(level: Level) -> bool:
    """Return whether the fusion takes L and L', or L' alone (the ablation without fusion)."""
    return level.fuse[0].shape[1] == 2 * level.project[0].shape[0]


def resize(tokens: Tensor, length: int) -> Tensor:
    """Resize the token axis of (B, N, D) linearly."""
    if known_equal(tokens.shape[1:2], (length,)):
        return tokens
    return F.interpolate(tokens.transpose(-2, -1), size=length, mode="linear", align_corners=False).transpose(-2, -1)


def laid_as(x: Tensor, out: Tensor) -> Tensor:
    """Return a map in x's memory format, which a convolution of maps of one channel loses."""
    if transformed() or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return out
    return out.contiguous(memory_format=torch.channels_last)


def partition_attention(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> Tensor:
    """Attend within the parts of q, k and v (B, N, heads * d): softmax(q k^T / sqrt(d)) v (eq. 3)."""
    batch, tokens, channels = q.shape
    parts = (tokens // num_parts, num_parts, num_heads, channels // num_heads)
    q, k, v = (t.reshape(batch, *parts).permute(0, 2, 3, 1, 4) for t in (q, k, v))  # [B, P, heads, N/P, d]
    attention = (q * (channels // num_heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)  # [B, P, heads, N/P, N/P]
    return (attention @ v).permute(0, 3, 1, 2, 4).reshape(batch, tokens, channels)


def transformer(y: Tensor, block: Block, num_parts: int, num_heads: int) -> Tensor:
    """Run a pre-norm block on tokens (B, N, D) (eq. 2-4)."""
    normed = F.layer_norm(y, block.norm1[0].shape, *block.norm1, EPSILON)
    q, k, v = (F.linear(normed, *affine) for affine in (block.q, block.k, block.v))
    y = y + F.linear(partition_attention(q, k, v, num_parts, num_heads), *block.proj)
    normed = F.layer_norm(y, block.norm2[0].shape, *block.norm2, EPSILON)
    return y + F.linear(F.gelu(F.linear(normed, *block.mlp_in)), *block.mlp_out)


def cfsam(
    maps: Sequence[Tensor], levels: Sequence[Level], blocks: Sequence[Block], *, num_parts: int, num_heads: int
) -> list[Tensor]:
    """Exchange features between the maps (B, C_i, H_i, W_i) of a pyramid (eq. 1-5)."""
    local = [
        F.conv2d(F.conv2d(x, *level.local, padding=1) if level.local else x, *level.project)
        for x, level in zip(maps, levels, strict=True)
    ]
    tokens = torch.cat([x.flatten(2) for x in local], dim=2).transpose(-2, -1)  # [B, N, D]
    y = resize(tokens, padded_length(tokens.shape[1], num_parts)) if blocks else tokens
    for block in blocks:
        y = transformer(y, block, num_parts, num_heads)
    mixed = resize(y, tokens.shape[1]).transpose(-2, -1).split([x.shape[2] * x.shape[3] for x in maps], dim=2)
    restored = [part.reshape(x.shape) for part, x in zip(mixed, local, strict=True)]
    fused = [
        F.conv2d(torch.cat([own, other], dim=1) if fuses_both(level) else other, *level.fuse)
        for own, other, level in zip(local, restored, levels, strict=True)
    ]
    return [laid_as(x, out) for x, out in zip(maps, fused, strict=True)]
