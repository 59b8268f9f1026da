"""Pooling of x * a_h * a_w by windows, without storing the product.

Contiguous rows are read whole. A tile [BC, BI * BR, BW] holds as many rows of BI rows of windows at once, so that what
is read next is added element by element, and only the sums are gathered from columns into windows. In channels_last,
where any pixel is aligned, a tile is [BC, BR, BJ, BV]: channels, rows, windows, columns of a window. Maxima are found
by the second way in both formats.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, channel_block, pixels, sample
from .layout import kernel, on_axis, saved_axes, saved_channels


@triton.jit
def window_sums(tile, WW, BJ: tl.constexpr, BV: tl.constexpr):
    """Sum the columns of each window of a tile [BC, BI, BW] that begins with a window: [BC, BI, BJ]."""
    BW: tl.constexpr = tile.shape[2]
    if BJ == 1:
        return tl.sum(tl.where((tl.arange(0, BW) < WW)[None, None, :], tile, 0.0), axis=2, keep_dims=True)
    place = tl.arange(0, BJ * BV)
    column = tl.minimum(place // BV * WW + place % BV, BW - 1)  # beyond a window's own, any
    index = column[None, None, :] + tl.zeros([tile.shape[0], tile.shape[1], BJ * BV], tl.int32)
    columns = tl.where((place % BV < WW)[None, None, :], tl.gather(tile, index, axis=2), 0.0)
    return tl.sum(tl.reshape(columns, [tile.shape[0], tile.shape[1], BJ, BV]), axis=3)


@triton.jit
def pool_by_rows(
    x, a_h, a_w, pooled, c0, w0, C, H, W, WH, WW, NI, NJ,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Average the windows of the block's columns, over all rows."""
    c = c0 + tl.arange(0, BC)
    w = w0 + tl.arange(0, BW)
    row = tl.arange(0, BI * BR)
    channels = (c < C)[:, None]
    columns = (w < W) & (w < w0 + COLUMNS)
    j = w0 // WW + tl.arange(0, BJ)
    windows = j < tl.minimum(NJ, w0 // WW + tl.cdiv(COLUMNS, WW))
    weights = tl.full([BC, BW], 1.0, tl.float32) / (WH * WW)
    if SPATIAL:
        at_w = on_axis(c[:, None], w[None, :], C, W, NHWC)
        weights *= tl.load(a_w + at_w, mask=channels & columns[None, :], other=0.0)
    for i0 in range(0, NI, BI):
        total = tl.zeros([BC, BI * BR, BW], tl.float32)
        for r0 in range(0, WH, BR):
            r = r0 + row % BR
            h = (i0 + row // BR) * WH + r
            rows = channels & ((r < WH) & (h < NI * WH))[None, :]  # [BC, BI * BR]
            inside = rows[:, :, None] & columns[None, None, :]
            offsets = pixels(c[:, None, None], h[None, :, None], w[None, None, :], C, H, W, NHWC)
            tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)  # [BC, BI * BR, BW]
            if SPATIAL:
                at_h = on_axis(c[:, None], h[None, :], C, H, NHWC)
                tile *= tl.load(a_h + at_h, mask=rows, other=0.0)[:, :, None]
            total += tile
        total = tl.sum(tl.reshape(total, [BC, BI, BR, BW]), axis=2) * weights[:, None, :]
        i = (i0 + tl.arange(0, BI))[:, None]
        inside = channels[:, :, None] & (i < NI)[None, :, :] & windows[None, None, :]
        at = ((i * NJ + j[None, :]) * C)[None, :, :] + c[:, None, None]
        tl.store(pooled + at, window_sums(total, WW, BJ, BV), mask=inside)


@triton.jit
def pool_by_windows(
    x, a_h, a_w, pooled, index, c0, j0, last, C, H, W, WH, WW, NI, NJ,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, MAX: tl.constexpr,
    BC: tl.constexpr, BR: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Average the windows j0 to last of each row of windows, or find their maxima and the first place of each."""
    c = (c0 + tl.arange(0, BC))[:, None, None, None]
    j = (j0 + tl.arange(0, BJ))[None, None, :, None]
    v = tl.arange(0, BV)[None, None, None, :]
    w = j * WW + v
    columns = (c < C) & (j < last) & (v < WW)  # [BC, 1, BJ, BV]
    weights = tl.full([BC, 1, BJ, BV], 1.0, tl.float32)
    if SPATIAL:
        weights = tl.load(a_w + on_axis(c, w, C, W, NHWC), mask=columns, other=0.0)
    cj = (c0 + tl.arange(0, BC))[:, None]
    jj = (j0 + tl.arange(0, BJ))[None, :]
    for i in range(NI):
        if MAX:
            best = tl.full([BC, BJ], float("-inf"), tl.float32)
            place = tl.zeros([BC, BJ], tl.int32) + (i * WH * W + jj * WW)
        else:
            total = tl.zeros([BC, 1, BJ, BV], tl.float32)
        for r0 in range(0, WH, BR):
            r = (r0 + tl.arange(0, BR))[None, :, None, None]
            h = i * WH + r
            inside = columns & (r < WH)
            tile = tl.load(x + pixels(c, h, w, C, H, W, NHWC), mask=inside, other=0.0).to(tl.float32)
            if SPATIAL:
                tile *= tl.load(a_h + on_axis(c, h, C, H, NHWC), mask=(c < C) & (r < WH), other=0.0)
            if MAX:
                tile = tl.where(inside, tile * weights, float("-inf"))
                top = tl.max(tl.max(tile, axis=3, keep_dims=True), axis=1, keep_dims=True)
                first = tl.where(inside & (tile == top), h * W + w, H * W)
                first = tl.min(tl.min(first, axis=3), axis=1)  # [BC, BJ]
                undefined = tl.max(tl.max((tile != tile).to(tl.int32), axis=3), axis=1) > 0
                top = tl.reshape(top, [BC, BJ])
                place = tl.where((top > best) & (first < H * W), first, place)
                best = tl.where(undefined, float("nan"), tl.where(top > best, top, best))
            else:
                total += tl.sum(tile, axis=1, keep_dims=True)
        if MAX:
            value = best
            tl.store(index + (i * NJ + jj) * C + cj, place, mask=(cj < C) & (jj < last))
        else:
            value = tl.reshape(tl.sum(total * weights, axis=3), [BC, BJ]) / (WH * WW)
        tl.store(pooled + (i * NJ + jj) * C + cj, value, mask=(cj < C) & (jj < last))


@triton.jit
def gated_pools(
    x, a_h, a_w, pooled, index, c0, part, C, H, W, WH, WW, NI, NJ,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, MAX: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Pool the windows of one block of channels and columns, the way that suits the format."""
    if NHWC or MAX:
        per_part = tl.cdiv(COLUMNS, WW)
        first = part * per_part
        last = tl.minimum(NJ, first + per_part)
        for j0 in range(first, last, BJ):
            pool_by_windows(
                x, a_h, a_w, pooled, index, c0, j0, last, C, H, W, WH, WW, NI, NJ,
                NHWC, SPATIAL, MAX, BC, BR, BJ, BV,
            )  # fmt: skip
    else:
        pool_by_rows(
            x, a_h, a_w, pooled, c0, part * COLUMNS, C, H, W, WH, WW, NI, NJ, NHWC, SPATIAL, COLUMNS,
            BC, BI, BR, BW, BJ, BV,
        )  # fmt: skip


@kernel
def gated_pool_kernel(
    x, saved, C, H, W, WH, WW, NI, NJ, SAVED,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, MAX: tl.constexpr, ALIGN: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, blocks of columns)."""
    begin()
    C, W = aligned(C, W, NHWC, ALIGN)
    b, c0 = channel_block(C, BC)
    saved = sample(saved, b, SAVED)
    a_h, a_w, _, _ = saved_axes(saved, C, H, W)
    _, _, _, pooled, index = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    gated_pools(
        sample(x, b, C * H * W), a_h, a_w, pooled, index, c0, tl.program_id(1), C, H, W, WH, WW, NI, NJ,
        NHWC, SPATIAL, MAX, COLUMNS, BC, BI, BR, BW, BJ, BV,
    )  # fmt: skip
