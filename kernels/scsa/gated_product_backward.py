"""Gradient of x, the last pass of backward: (grad_out * g + pooled gradient) * a_h * a_w + the means' gradients."""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, channel_block, pixels, sample
from .layout import kernel, on_axis, saved_axes, saved_channels, scratch_axes, scratch_channels


@triton.jit
def input_gradients(
    grad_out, grad_x, a_h, a_w, d_h, d_w, gate, dy, index, c0, w0, C, H, W, WH, WW, NI, NJ,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Write all rows of the block's channels and columns, one row of windows after the other."""
    c = c0 + tl.arange(0, BC)
    w = w0 + tl.arange(0, BW)
    columns = (c < C)[:, None] & ((w < W) & (w < w0 + COLUMNS))[None, :]  # [BC, BW]
    factor = tl.full([BC, BW], 1.0, tl.float32)
    if SPATIAL:
        at_w = on_axis(c[:, None], w[None, :], C, W, NHWC)
        weight_w = tl.load(a_w + at_w, mask=columns, other=0.0)
        mean_w = tl.load(d_w + at_w, mask=columns, other=0.0) / H
    if CHANNEL:
        factor *= tl.load(gate + c, mask=c < C, other=0.0)[:, None]
        window = w // WW
    for i in range(tl.cdiv(H, WH)):
        if CHANNEL:
            n = i * NJ + window
            pooled = n[None, :] * C + c[:, None]
            known = columns & ((window < NJ) & (n < NI * NJ))[None, :]
            gradient = tl.load(dy + pooled, mask=known, other=0.0)  # [BC, BW]
            if MAX:
                place = tl.load(index + pooled, mask=known, other=-1)
        for r0 in range(0, WH, BR):
            r = r0 + tl.arange(0, BR)
            h = i * WH + r
            rows = (c < C)[:, None] & ((r < WH) & (h < H))[None, :]  # [BC, BR]
            inside = columns[:, None, :] & rows[:, :, None]
            offsets = pixels(c[:, None, None], h[None, :, None], w[None, None, :], C, H, W, NHWC)
            tile = tl.load(grad_out + offsets, mask=inside, other=0.0).to(tl.float32) * factor[:, None, :]
            if CHANNEL:
                if MAX:
                    here = h[None, :, None] * W + w[None, None, :]
                    tile += tl.where(place[:, None, :] == here, gradient[:, None, :], 0.0)
                else:
                    tile += gradient[:, None, :]
            if SPATIAL:
                at_h = on_axis(c[:, None], h[None, :], C, H, NHWC)
                tile *= tl.load(a_h + at_h, mask=rows, other=0.0)[:, :, None]
                mean_h = tl.load(d_h + at_h, mask=rows, other=0.0) / W
                tile = tile * weight_w[:, None, :] + (mean_h[:, :, None] + mean_w[:, None, :])
            tl.store(grad_x + offsets, tile, mask=inside)


@kernel
def input_gradient_kernel(
    grad_out, saved, scratch, grad_x, C, H, W, WH, WW, NI, NJ, PARTS, SAVED, SCRATCH,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr,
    ALIGN: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, blocks of columns)."""
    begin()
    C, W = aligned(C, W, NHWC, ALIGN)
    b, c0 = channel_block(C, BC)
    saved, scratch = sample(saved, b, SAVED), sample(scratch, b, SCRATCH)
    a_h, a_w, _, _ = saved_axes(saved, C, H, W)
    _, gate, _, _, index = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    _, _, d_h, d_w, _, _ = scratch_axes(scratch, C, H, W, NI, NJ, PARTS)
    _, dy = scratch_channels(scratch, C, H, W, NI, NJ, PARTS, SPATIAL, MAX)
    input_gradients(
        sample(grad_out, b, C * H * W), sample(grad_x, b, C * H * W), a_h, a_w, d_h, d_w, gate, dy, index,
        c0, tl.program_id(1) * COLUMNS, C, H, W, WH, WW, NI, NJ,
        NHWC, SPATIAL, CHANNEL, MAX, COLUMNS, BC, BR, BW,
    )  # fmt: skip
