"""One launch for a whole operation on small maps: a program takes a sample through all stages.

Several programs of one sample share nothing but the writing: each computes the vectors of the whole sample, which
are the same numbers, and then its own channels' attention and output.
"""

import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, sample
from .axis_gate import axis_gates
from .axis_gate_backward import axes_gradients
from .axis_mean import axis_means
from .channel_attention import channel_attention
from .channel_attention_backward import channel_attention_gradients, pooled_gradients
from .gated_gather import gated_gathers
from .gated_pool import gated_pools
from .gated_product import gated_products
from .gated_product_backward import input_gradients
from .layout import kernel, saved_axes, saved_channels, scratch_axes, scratch_channels


@kernel
def small_forward_kernel(
    x, out, saved, axes, attention,
    C, H, W, WH, WW, NI, NJ, D, SAVED, ROWS,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr, BIAS: tl.constexpr,
    SOFTMAX: tl.constexpr, ALIGN: tl.constexpr,
    KERNELS: tl.constexpr, KMAX: tl.constexpr,
    TILES_H: tl.constexpr, TILES_W: tl.constexpr, NG: tl.constexpr, BG_H: tl.constexpr, BG_W: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    WINDOW_BC: tl.constexpr, WINDOW_BI: tl.constexpr, WINDOW_BR: tl.constexpr,
    BJ: tl.constexpr, BV: tl.constexpr,
    ATTENTION_BI: tl.constexpr, ATTENTION_BJ: tl.constexpr, BLOCK: tl.constexpr,
    POOLED_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks of ROWS channels)."""
    begin()
    C, W = aligned(C, W, NHWC, ALIGN)
    b = tl.program_id(0)
    x, out, saved = sample(x, b, C * H * W), sample(out, b, C * H * W), sample(saved, b, SAVED)
    a_h, a_w, mean_h, mean_w = saved_axes(saved, C, H, W)
    statistics, gate, rows, pooled, index = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    first = tl.program_id(1) * (ROWS // BC * BC)
    last = tl.minimum(first + ROWS, C)
    if SPATIAL:
        for c0 in range(0, C, BC):
            axis_means(x, mean_h, mean_w, c0, 0, C, H, W, NHWC, BW, BC, BR, BW)
        tl.debug_barrier()
        for g0 in range(0, 4, NG):
            axis_gates(
                mean_h, a_h, saved, axes[8:10], axes[:4], axes[4:8], g0, C, H,
                NHWC, SOFTMAX, KERNELS, KMAX, TILES_H, NG, BG_H, BH,
            )  # fmt: skip
            axis_gates(
                mean_w, a_w, saved + 8, axes[10:12], axes[:4], axes[4:8], g0, C, W,
                NHWC, SOFTMAX, KERNELS, KMAX, TILES_W, NG, BG_W, BW,
            )  # fmt: skip
        tl.debug_barrier()
    if CHANNEL:
        for c0 in range(0, C, WINDOW_BC):
            gated_pools(
                x, a_h, a_w, pooled, index, c0, 0, C, H, W, WH, WW, NI, NJ,
                NHWC, SPATIAL, MAX, BW, WINDOW_BC, WINDOW_BI, WINDOW_BR, BW, BJ, BV,
            )  # fmt: skip
        tl.debug_barrier()
        channel_attention(
            statistics, pooled, gate, rows,
            attention,
            first, last, C, NI * NJ, D, BIAS, SOFTMAX, ATTENTION_BI, ATTENTION_BJ, 1, BLOCK, POOLED_BLOCK,
        )  # fmt: skip
        tl.debug_barrier()
    for c0 in range(first, last, BC):
        gated_products(x, out, a_h, a_w, gate, c0, 0, C, H, W, NHWC, SPATIAL, CHANNEL, BW, BC, BR, BW)


@kernel
def small_backward_kernel(
    grad_out, x, saved, scratch, grad_x, axes, attention,
    C, H, W, WH, WW, NI, NJ, D, SAVED, SCRATCH, GRADS,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr, WINDOWS: tl.constexpr,
    BIAS: tl.constexpr, SOFTMAX: tl.constexpr, NEED_X: tl.constexpr, ALIGN: tl.constexpr,
    KERNELS: tl.constexpr, KMAX: tl.constexpr,
    TILES_H: tl.constexpr, TILES_W: tl.constexpr, NG: tl.constexpr, BG_H: tl.constexpr, BG_W: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr,
    WINDOW_BC: tl.constexpr, WINDOW_BI: tl.constexpr, WINDOW_BR: tl.constexpr,
    BJ: tl.constexpr, BV: tl.constexpr,
    BC: tl.constexpr, BR: tl.constexpr,
    ATTENTION_BI: tl.constexpr, ATTENTION_BJ: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples); the parameters' gradients are left for `batch_sum`."""
    begin()
    C, W = aligned(C, W, NHWC, ALIGN)
    b = tl.program_id(0)
    x, grad_out, grad_x = sample(x, b, C * H * W), sample(grad_out, b, C * H * W), sample(grad_x, b, C * H * W)
    saved, scratch = sample(saved, b, SAVED), sample(scratch, b, SCRATCH)
    a_h, a_w, _, _ = saved_axes(saved, C, H, W)
    statistics, gate, rows, pooled, index = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    r_h, r_w, d_h, d_w, p_h, p_w = scratch_axes(scratch, C, H, W, NI, NJ, 1)
    dg, dy = scratch_channels(scratch, C, H, W, NI, NJ, 1, SPATIAL, MAX)
    for c0 in range(0, C, WINDOW_BC):
        gated_gathers(
            grad_out, x, a_h, a_w, r_h, r_w, p_h, p_w, dg, c0, 0, C, H, W, WH, WW, NI, NJ,
            NHWC, SPATIAL, WINDOWS, BW, WINDOW_BC, WINDOW_BI, WINDOW_BR, BW, BJ, BV,
        )  # fmt: skip
    tl.debug_barrier()
    if CHANNEL:
        grads = scratch + SCRATCH - (8 if BIAS else 5) * C
        channel_attention_gradients(
            statistics, pooled, gate, rows, dg, dy, grads,
            attention,
            0, C, C, NI * NJ, D, 1, BIAS, SOFTMAX, ATTENTION_BI, ATTENTION_BJ, 1, BLOCK,
        )  # fmt: skip
        tl.debug_barrier()
        if not SPATIAL:
            pooled_gradients(
                statistics, pooled, dy, grads, attention[0], 0, C, C, NI * NJ, 1 if MAX else WH * WW, BLOCK
            )
            tl.debug_barrier()
    if SPATIAL:
        for g0 in range(0, 4, NG):
            axes_gradients(
                x, saved, scratch, axes, attention[0], g0,
                C, H, W, WH, WW, NI, NJ, 1, SCRATCH, GRADS,
                NHWC, CHANNEL, MAX, BIAS, SOFTMAX, KERNELS, KMAX,
                TILES_H, TILES_W, NG, BG_H, BG_W, BH, BW, BLOCK,
            )  # fmt: skip
        tl.debug_barrier()
    if NEED_X:
        for c0 in range(0, C, BC):
            input_gradients(
                grad_out, grad_x, a_h, a_w, d_h, d_w, gate, dy, index, c0, 0, C, H, W, WH, WW, NI, NJ,
                NHWC, SPATIAL, CHANNEL, MAX, BW, BC, BR, BW,
            )  # fmt: skip
