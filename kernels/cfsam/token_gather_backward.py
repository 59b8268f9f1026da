"""Backward of the token gather: LayerNorm's, the resizing's adjoint, and each level's own tokens. The parameters'
gradients are left in a row of each program, for `batch_sum`.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.resize import hat, output_shifts
from .token_gather_forward import element, kernel, transfer


@triton.jit
def token_gradient(
    grad_tokens, grad_normed, tokens, statistics, gamma, b, o0, share, d, M, D,
    GRAD_TOKENS: tl.constexpr, NORM: tl.constexpr, RESIZE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return shares of the gradients of output tokens o0 + t, [BT, BD], and their sums for weight and bias, [BD]."""
    t = tl.arange(0, BT)
    inside = (share > 0)[:, None] & (d < D)[None, :]
    grad = tl.zeros([BT, BD], tl.float32)
    d_weight = tl.zeros([BD], tl.float32)
    d_bias = tl.zeros([BD], tl.float32)
    if NORM:
        at = statistics + (b.to(tl.int64) * M + o0) * 2 + t * 2
        mean = tl.load(at, mask=share > 0, other=0.0)[:, None]
        scale = tl.load(at + 1, mask=share > 0, other=0.0)[:, None]
        x = tl.load(element(tokens, b, o0, t, d, M, D), mask=inside, other=0.0).to(tl.float32)
        x = (x - mean) * scale
        g = tl.load(element(grad_normed, b, o0, t, d, M, D), mask=inside, other=0.0).to(tl.float32)
        if RESIZE:
            g *= share[:, None]
        d_weight = tl.sum(g * x, axis=0)
        d_bias = tl.sum(g, axis=0)
        g *= gamma[None, :]
        grad = (g - (tl.sum(g, axis=1) / D)[:, None] - x * (tl.sum(g * x, axis=1) / D)[:, None]) * scale
    if GRAD_TOKENS:
        g = tl.load(element(grad_tokens, b, o0, t, d, M, D), mask=inside, other=0.0).to(tl.float32)
        if RESIZE:
            g *= share[:, None]
        grad += g
    return grad, d_weight, d_bias


@kernel
def token_gather_backward_kernel(
    grad_tokens, grad_normed, tokens,  # [B, M, D]
    statistics,  # [B, M, 2]
    weight,  # [D]
    grads,  # of LEVELS
    scratch,  # [programs, 2, D]: gradients of weight and bias
    B, D, N, M, PIXELS, FORMATS,
    LEVELS: tl.constexpr, KINDS: tl.constexpr, ALIGN: tl.constexpr, GRAD_TOKENS: tl.constexpr, RESIZE: tl.constexpr,
    NORM: tl.constexpr, PARAMS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Grid (programs), over which samples x blocks of input tokens are dealt."""
    begin()
    D = D // ALIGN * ALIGN
    d = tl.arange(0, BD)
    gamma = tl.zeros([BD], tl.float32)
    if NORM:
        gamma += tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    d_weight = tl.zeros([BD], tl.float32)
    d_bias = tl.zeros([BD], tl.float32)
    blocks = tl.cdiv(N, BT)
    for block in range(tl.program_id(0), B * blocks, tl.num_programs(0)):
        b, i0 = block // blocks, block % blocks * BT
        t = tl.arange(0, BT)
        i = i0 + t
        if RESIZE:
            grad = tl.zeros([BT, BD], tl.float32)
            first, end = output_shifts(i0, N, M, BT)
            for s in range(first, end):
                share = hat(i0 + s, i0, t, N, M)
                part, part_weight, part_bias = token_gradient(
                    grad_tokens, grad_normed, tokens, statistics, gamma, b, i0 + s, share, d, M, D,
                    GRAD_TOKENS, NORM, RESIZE, BT, BD,
                )  # fmt: skip
                grad += part
                d_weight += part_weight
                d_bias += part_bias
        else:
            grad, part_weight, part_bias = token_gradient(
                grad_tokens, grad_normed, tokens, statistics, gamma, b, i0, (i < N).to(tl.float32), d, M, D,
                GRAD_TOKENS, NORM, RESIZE, BT, BD,
            )  # fmt: skip
            d_weight += part_weight
            d_bias += part_bias
        transfer(grads, PIXELS, FORMATS, grad, b, i0, i < N, d, D, LEVELS, KINDS, True, RESIZE, BT)
    if PARAMS:
        row = scratch + tl.program_id(0).to(tl.int64) * D * 2
        tl.store(row + d, d_weight, mask=d < D)
        tl.store(row + D + d, d_bias, mask=d < D)
