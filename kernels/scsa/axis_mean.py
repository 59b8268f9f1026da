"""Means of x over each of its two axes, from one read."""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, channel_block, pixels, sample
from .layout import kernel, mean_parts, on_axis, saved_axes


@triton.jit
def axis_means(
    x, mean_h, mean_w, c0, w0, C, H, W,
    NHWC: tl.constexpr, COLUMNS: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Mean over the block's columns into mean_h, over all rows into mean_w."""
    c = c0 + tl.arange(0, BC)
    w = w0 + tl.arange(0, BW)
    columns = (w < W) & (w < w0 + COLUMNS)
    total = tl.zeros([BC, BR, BW], tl.float32)
    for h0 in range(0, H, BR):
        h = h0 + tl.arange(0, BR)
        inside = (c < C)[:, None, None] & (h < H)[None, :, None] & columns[None, None, :]
        offsets = pixels(c[:, None, None], h[None, :, None], w[None, None, :], C, H, W, NHWC)
        tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)  # [BC, BR, BW]
        total += tile
        tl.store(
            mean_h + on_axis(c[:, None], h[None, :], C, H, NHWC),
            tl.sum(tile, axis=2) / W,
            mask=(c < C)[:, None] & (h < H)[None, :],
        )
    tl.store(
        mean_w + on_axis(c[:, None], w[None, :], C, W, NHWC),
        tl.sum(total, axis=1) / H,
        mask=(c < C)[:, None] & columns[None, :],
    )


@kernel
def axis_mean_kernel(
    x, out, saved, C, H, W, SAVED,
    NHWC: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, blocks of columns)."""
    begin()
    C, W = aligned(C, W, NHWC, ALIGN)
    b, c0 = channel_block(C, BC)
    part = tl.program_id(1)
    _, _, mean_h, mean_w = saved_axes(sample(saved, b, SAVED), C, H, W)
    if SPLIT:
        mean_h = mean_parts(out, b, C, H, W) + part * C * H
    axis_means(
        sample(x, b, C * H * W), mean_h, mean_w, c0, part * COLUMNS, C, H, W,
        NHWC, COLUMNS, BC, BR, BW,
    )  # fmt: skip
