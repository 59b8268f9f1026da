"""What backward needs of x: every sum over (gradient, x) and over x alone, from one read of both.

    r_h = sum over W of grad_out * x * a_w        p_h = sum over the window's columns of x * a_w, for each row
    r_w = sum over H of grad_out * x * a_h        p_w = sum over the window's rows of x * a_h, for each column
    dg = sum over both of grad_out * x * a_h * a_w

Tiles as in `gated_pool`. The rows below the last whole window follow as one more, for the sums r and dg.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, channel_block, pixels, sample
from .gated_pool import window_sums
from .layout import kernel, on_axis, saved_axes, scratch_axes, scratch_channels


@triton.jit
def gather_by_rows(
    grad_out, x, a_h, a_w, r_h, r_w, p_h, p_w, dg, c0, w0, C, H, W, WH, WW, NI, NJ,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, WINDOWS: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gather the block's columns, over all rows; without WINDOWS no p."""
    c = c0 + tl.arange(0, BC)
    w = w0 + tl.arange(0, BW)
    row = tl.arange(0, BI * BR)
    columns = (c < C)[:, None] & ((w < W) & (w < w0 + COLUMNS))[None, :]  # [BC, BW]
    at_w = on_axis(c[:, None], w[None, :], C, W, NHWC)
    j = w0 // WW + tl.arange(0, BJ)
    windows = j < tl.minimum(NJ, w0 // WW + tl.cdiv(COLUMNS, WW))
    if SPATIAL:
        weight_w = tl.load(a_w + at_w, mask=columns, other=0.0)
    total_w = tl.zeros([BC, BI * BR, BW], tl.float32)
    for i0 in range(0, tl.cdiv(H, WH), BI):
        sums = tl.zeros([BC, BI * BR, BW], tl.float32)
        for r0 in range(0, WH, BR):
            r = r0 + row % BR
            h = (i0 + row // BR) * WH + r
            rows = (c < C)[:, None] & ((r < WH) & (h < H))[None, :]  # [BC, BI * BR]
            inside = columns[:, None, :] & rows[:, :, None]
            offsets = pixels(c[:, None, None], h[None, :, None], w[None, None, :], C, H, W, NHWC)
            tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)  # [BC, BI * BR, BW]
            gradient = tl.load(grad_out + offsets, mask=inside, other=0.0).to(tl.float32)
            if SPATIAL:
                at_h = on_axis(c[:, None], h[None, :], C, H, NHWC)
                weight_h = tl.load(a_h + at_h, mask=rows, other=0.0)[:, :, None]
                total_w += gradient * tile * weight_h
                tl.store(r_h + at_h, tl.sum(gradient * tile * weight_w[:, None, :], axis=2), mask=rows)
                if WINDOWS:
                    sums += tile * weight_h
                    parts = window_sums(tile * weight_w[:, None, :], WW, BJ, BV)  # [BC, BI * BR, BJ]
                    pooled = (rows & (h < NI * WH)[None, :])[:, :, None] & windows[None, None, :]
                    tl.store(p_h + j[None, None, :] * C * H + at_h[:, :, None], parts, mask=pooled)
            else:
                total_w += gradient * tile
        if SPATIAL and WINDOWS:
            sums = tl.sum(tl.reshape(sums, [BC, BI, BR, BW]), axis=2)
            i = (i0 + tl.arange(0, BI))[None, :, None]
            tl.store(p_w + i * C * W + at_w[:, None, :], sums, mask=columns[:, None, :] & (i < NI))
    total = tl.sum(total_w, axis=1)  # [BC, BW]
    if SPATIAL:
        tl.store(r_w + at_w, total, mask=columns)
        total *= weight_w
    tl.store(dg + c, tl.sum(total, axis=1), mask=c < C)


@triton.jit
def gather_by_windows(
    grad_out, x, a_h, a_w, r_h, r_w, p_h, p_w, dg, c0, j0, last, C, H, W, WH, WW, NI, NJ,
    NHWC: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gather the windows j0 to last, of which the one after NJ is a remainder."""
    c = (c0 + tl.arange(0, BC))[:, None, None, None]
    j = (j0 + tl.arange(0, BJ))[None, None, :, None]
    v = tl.arange(0, BV)[None, None, None, :]
    w = j * WW + v
    columns = (c < C) & (j < last) & (v < WW) & (w < W)  # [BC, 1, BJ, BV]
    at_w = on_axis(c, w, C, W, NHWC)
    weight_w = tl.load(a_w + at_w, mask=columns, other=0.0)
    total_w = tl.zeros([BC, BR, BJ, BV], tl.float32)
    for i in range(tl.cdiv(H, WH)):
        sums = tl.zeros([BC, 1, BJ, BV], tl.float32)
        for r0 in range(0, WH, BR):
            r = (r0 + tl.arange(0, BR))[None, :, None, None]
            h = i * WH + r
            rows = (c < C) & (r < WH) & (h < H)  # [BC, BR, 1, 1]
            inside = columns & rows
            offsets = pixels(c, h, w, C, H, W, NHWC)
            tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)  # [BC, BR, BJ, BV]
            gradient = tl.load(grad_out + offsets, mask=inside, other=0.0).to(tl.float32)
            at_h = on_axis(c, h, C, H, NHWC)
            by_row = tile * tl.load(a_h + at_h, mask=rows, other=0.0)
            by_column = tile * weight_w
            total_w += gradient * by_row
            part = tl.sum(tl.sum(gradient * by_column, axis=3, keep_dims=True), axis=2, keep_dims=True)
            tl.store(r_h + at_h, part, mask=rows)
            sums += tl.sum(by_row, axis=1, keep_dims=True)
            part = tl.sum(by_column, axis=3, keep_dims=True)  # [BC, BR, BJ, 1]
            if i < NI:
                tl.store(p_h + j * C * H + at_h, part, mask=rows & (j < tl.minimum(last, NJ)))
        if i < NI:
            tl.store(p_w + i * C * W + at_w, sums, mask=columns)
    total = tl.sum(total_w, axis=1, keep_dims=True)  # [BC, 1, BJ, BV]
    tl.store(r_w + at_w, total, mask=columns)
    total *= weight_w
    total = tl.sum(tl.sum(total, axis=3, keep_dims=True), axis=2, keep_dims=True)
    tl.store(dg + c, total, mask=c < C)


@triton.jit
def gated_gathers(
    grad_out, x, a_h, a_w, r_h, r_w, p_h, p_w, dg, c0, part, C, H, W, WH, WW, NI, NJ,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, WINDOWS: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gather one block of channels and columns, the way that suits the format."""
    if NHWC and WINDOWS:
        per_part = tl.cdiv(COLUMNS, WW)
        j0 = part * per_part
        last = tl.minimum(tl.cdiv(W, WW), j0 + per_part)
        gather_by_windows(
            grad_out, x, a_h, a_w, r_h, r_w, p_h, p_w, dg, c0, j0, last, C, H, W, WH, WW, NI, NJ,
            NHWC, BC, BR, BJ, BV,
        )  # fmt: skip
    else:
        gather_by_rows(
            grad_out, x, a_h, a_w, r_h, r_w, p_h, p_w, dg, c0, part * COLUMNS, C, H, W, WH, WW, NI, NJ,
            NHWC, SPATIAL, WINDOWS, COLUMNS, BC, BI, BR, BW, BJ, BV,
        )  # fmt: skip


@kernel
def gated_gather_kernel(
    grad_out, x, saved, scratch, C, H, W, WH, WW, NI, NJ, PARTS, SAVED, SCRATCH,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, WINDOWS: tl.constexpr, MAX: tl.constexpr,
    ALIGN: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, blocks of columns)."""
    begin()
    C, W = aligned(C, W, NHWC, ALIGN)
    b, c0 = channel_block(C, BC)
    part = tl.program_id(1)
    scratch = sample(scratch, b, SCRATCH)
    a_h, a_w, _, _ = saved_axes(sample(saved, b, SAVED), C, H, W)
    r_h, r_w, _, _, p_h, p_w = scratch_axes(scratch, C, H, W, NI, NJ, PARTS)
    dg, _ = scratch_channels(scratch, C, H, W, NI, NJ, PARTS, SPATIAL, MAX)
    gated_gathers(
        sample(grad_out, b, C * H * W), sample(x, b, C * H * W), a_h, a_w, r_h + part * C * H, r_w, p_h, p_w,
        dg + part * C, c0, part, C, H, W, WH, WW, NI, NJ,
        NHWC, SPATIAL, WINDOWS, COLUMNS, BC, BI, BR, BW, BJ, BV,
    )  # fmt: skip
