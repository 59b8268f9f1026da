"""ACP and CAT, interaction of tokens before self-attention (arXiv 2412.18778), in eager PyTorch.

Aggressive convolution pooling widens what a pixel sees, conceptual attention lets all tokens meet at K concepts:

    X_0 = x, X_l = maxpool(dwconv(X_{l-1}))            (B, C, H_l, W_l), H_l = ceil(H_{l-1} / pool), l = 1 ... L
    ACP = conv1x1(concat(X_0, up(X_1), ..., up(X_L)))  or conv1x1(X_0 + up(X_1) + ... + up(X_L)); up to (H, W)

    S   = X W_c                                        scores (B, N, K)
    T   = softmax over N of S, transposed, X W_v       concept tokens (B, K, C): the forward flow
    CAT = X + (softmax over K of S) T W_o              the backward flow

The paper's is the order: patch embedding, ACP, CAT, then self-attention; convolution and max pooling, applied several
times; concept tokens and maps that align visual tokens with them, in both directions. Its equations were not to be had:
those above are a reconstruction, which each choice that is an argument of the modules varies.

Resizing is by nearest neighbour, with the integer rule floor(i * in / out). A window of the pooling that overhangs an
edge has its pixels inside alone; of equal maxima the first has the gradient, row by row.

What the fast paths use, each exact up to rounding:

- Only the greatest value of a window is kept: convolution and pooling are one pass, and backward needs its place alone.
- The 1x1 convolution of a resized map is the resized convolution of the map: W_l X_l is formed at low resolution.
- The softmax over N sums to one: T = (softmax^T X) W_v + b_v; that over K too: CAT = X + softmax (T W_o + b_o). Both
  C x C products act on K concepts instead of N tokens.
- P = softmax over N has the gradient P (X dA^T - e), A = P^T X, with e_k = A_k dA_k: a sum over C, not over N.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.reference import Affine, depthwise, resize_nearest

AGGREGATES = ("concat", "sum")


def level_sizes(height: int, width: int, num_layers: int, pool_size: int) -> list[tuple[int, int]]:
    """Return (H_l, W_l) of the levels 0 ... L."""
    sizes = [(height, width)]
    for _ in range(num_layers):
        height, width = (height + pool_size - 1) // pool_size, (width + pool_size - 1) // pool_size
        sizes.append((height, width))
    return sizes


def aggressive_conv_pooling(
    x: Tensor, convs: Sequence[Affine], proj: Affine, *, pool_size: int = 2, aggregate: str = "concat"
) -> Tensor:
    """Aggregate x (B, C, H, W) with its convolved and pooled levels; (B, C, H, W)."""
    levels = [x]
    for conv in convs:
        levels.append(F.max_pool2d(depthwise(levels[-1], conv), pool_size, pool_size, ceil_mode=True))
    levels = [resize_nearest(level, *x.shape[2:]) for level in levels]
    return F.conv2d(sum(levels[1:], start=levels[0]) if aggregate == "sum" else torch.cat(levels, dim=1), *proj)


def conceptual_attention(x: Tensor, score: Tensor, value: Affine, out: Affine) -> Tensor:
    """Align tokens (B, N, C) with concepts, whose scores have the weight (K, C)."""
    scores = F.linear(x, score)  # [B, N, K]
    concepts = scores.softmax(dim=1).transpose(-2, -1) @ F.linear(x, *value)  # [B, K, C]
    return x + F.linear(scores.softmax(dim=2) @ concepts, *out)


def enhanced_interaction(
    x: Tensor,
    size: tuple[int, int],
    convs: Sequence[Affine],
    proj: Affine,
    score: Tensor,
    value: Affine,
    out: Affine,
    *,
    pool_size: int = 2,
    aggregate: str = "concat",
    num_prefix_tokens: int = 0,
) -> Tensor:
    """Add ACP to the tokens of the grid, which come after the prefix tokens of x (B, N, C); then CAT of all."""
    prefix, grid = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    wider = aggressive_conv_pooling(
        grid.transpose(-2, -1).unflatten(2, size), convs, proj, pool_size=pool_size, aggregate=aggregate
    )
    x = torch.cat([prefix, grid + wider.flatten(2).transpose(-2, -1)], dim=1)
    return conceptual_attention(x, score, value, out)
