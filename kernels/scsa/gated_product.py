"""The gated product x * (a_h * g) * a_w, the last pass over x."""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, channel_block, pixels, sample
from .layout import kernel, on_axis, saved_axes, saved_channels


@triton.jit
def gated_products(
    x, out, a_h, a_w, gate, c0, w0, C, H, W,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, CHANNEL: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Write all rows of the block's channels and columns."""
    c = c0 + tl.arange(0, BC)
    w = w0 + tl.arange(0, BW)
    columns = (w < W) & (w < w0 + COLUMNS)
    factor = tl.full([BC, BW], 1.0, tl.float32)  # of channels and columns
    if CHANNEL:
        factor *= tl.load(gate + c, mask=c < C, other=0.0)[:, None]
    if SPATIAL:
        at_w = on_axis(c[:, None], w[None, :], C, W, NHWC)
        factor *= tl.load(a_w + at_w, mask=(c < C)[:, None] & columns[None, :], other=0.0)
    for h0 in range(0, H, BR):
        h = h0 + tl.arange(0, BR)
        inside = (c < C)[:, None, None] & (h < H)[None, :, None] & columns[None, None, :]
        offsets = pixels(c[:, None, None], h[None, :, None], w[None, None, :], C, H, W, NHWC)
        tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) * factor[:, None, :]  # [BC, BR, BW]
        if SPATIAL:
            at_h = on_axis(c[:, None], h[None, :], C, H, NHWC)
            tile *= tl.load(a_h + at_h, mask=(c < C)[:, None] & (h < H)[None, :], other=0.0)[:, :, None]
        tl.store(out + offsets, tile, mask=inside)


@kernel
def gated_product_kernel(
    x, out, saved, C, H, W, NI, NJ, SAVED,
    NHWC: tl.constexpr, SPATIAL: tl.constexpr, CHANNEL: tl.constexpr, ALIGN: tl.constexpr, COLUMNS: tl.constexpr,
    BC: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, blocks of columns)."""
    begin()
    C, W = aligned(C, W, NHWC, ALIGN)
    b, c0 = channel_block(C, BC)
    saved = sample(saved, b, SAVED)
    a_h, a_w, _, _ = saved_axes(saved, C, H, W)
    _, gate, _, _, _ = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    gated_products(
        sample(x, b, C * H * W), sample(out, b, C * H * W), a_h, a_w, gate,
        c0, tl.program_id(1) * COLUMNS, C, H, W,
        NHWC, SPATIAL, CHANNEL, COLUMNS, BC, BR, BW,
    )  # fmt: skip
