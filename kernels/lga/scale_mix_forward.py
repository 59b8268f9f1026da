"""Forward of LGA's scale features, and what backward shares with it: blocks of pixels, and what pixels read.

    z = x + sum over i of a_i up(u_i) + up(position encoding)          a = softmax(w x + b), per pixel

A program takes all channels of a few rows, so that most pixels that read one pixel of a coarse map are in the same
program.
"""

import functools

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, pixels, sample

kernel = functools.partial(
    triton.jit,
    do_not_specialize=("B", "D", "H", "W", "PH", "PW"),
    do_not_specialize_on_alignment=("weight", "bias", "encoding"),
)


@triton.jit
def block(H, W, BH: tl.constexpr, BW: tl.constexpr):
    """Sample, first row and first column of a program, in a grid of samples x blocks of rows x blocks of columns."""
    rows, columns = tl.cdiv(H, BH), tl.cdiv(W, BW)
    n = tl.program_id(0)
    return n // (rows * columns), n // columns % rows * BH, n % columns * BW


@triton.jit
def places(h0, w0, H, W, BH: tl.constexpr, BW: tl.constexpr):
    """Rows and columns of a block's pixels, and which are in the map: [BH * BW]."""
    p = tl.arange(0, BH * BW)
    h, w = h0 + p // BW, w0 + p % BW
    return h, w, (h < H) & (w < W)


@triton.jit
def source(l, L, M):
    """Return the place of M that place l of L reads."""
    return l * M // L


@triton.jit
def coarse_side(L, LEVEL: tl.constexpr):
    """Return the side of a level."""
    return (L + (1 << LEVEL) - 1) >> LEVEL


@triton.jit
def read_level(level, b, c, h, w, inside, D, H, W, LEVEL: tl.constexpr, NHWC: tl.constexpr):
    """Return what pixels (h, w) of sample b read of a level: [BC, BH * BW]."""
    MH, MW = coarse_side(H, LEVEL), coarse_side(W, LEVEL)
    if LEVEL > 0:
        h, w = source(h, H, MH), source(w, W, MW)
        at = pixels(c[:, None], h[None, :], w[None, :], D, MH, MW, NHWC)
    else:
        at = pixels(c[:, None], h[None, :], w[None, :], D, H, W, NHWC)
    return tl.load(sample(level, b, D * MH * MW) + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def read_encoding(encoding, c, h, w, inside, H, W, PH, PW):
    """Return what pixels (h, w) read of the position encoding: [BC, BH * BW]."""
    p = source(h, H, PH) * PW + source(w, W, PW)
    return tl.load(encoding + c[:, None] * (PH * PW) + p[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def share_offsets(s, h, w, H, W):
    """Offsets of the shares s of pixels (h, w) in their sample: [SHARES, BH * BW]."""
    return s.to(tl.int64)[:, None] * (H * W) + (h * W + w)[None, :]


@triton.jit
def row(values, i, ROWS: tl.constexpr):
    """Return row i of values [ROWS, BH * BW]."""
    return tl.sum(tl.where(tl.arange(0, ROWS)[:, None] == i, values, 0.0), axis=0)


@kernel
def scale_mix_kernel(
    x,  # [B, D, H, W]
    us,  # SCALES of [B, D, H / 2^i, W / 2^i]
    weight,  # [SCALES + 1, D]
    bias,  # [SCALES + 1]
    encoding,  # [D, PH, PW]
    z,  # [B, D, H, W]
    shares,  # [B, SCALES + 1, H, W]
    D, H, W, PH, PW,
    SCALES: tl.constexpr, SHARES: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
    BC: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of rows x blocks of columns)."""
    begin()
    D, W = aligned(D, W, NHWC, ALIGN)
    b, h0, w0 = block(H, W, BH, BW)
    h, w, known = places(h0, w0, H, W, BH, BW)
    x, z = sample(x, b, D * H * W), sample(z, b, D * H * W)
    s = tl.arange(0, SHARES)
    start = tl.load(bias + s, mask=s <= SCALES, other=float("-inf")).to(tl.float32)
    logits = tl.zeros([SHARES, BH * BW], tl.float32) + start[:, None]
    for c0 in range(0, D, BC):
        c = c0 + tl.arange(0, BC)
        inside = (c < D)[:, None] & known[None, :]
        at = pixels(c[:, None], h[None, :], w[None, :], D, H, W, NHWC)
        tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)  # [BC, BH * BW]
        for i in tl.static_range(SCALES + 1):
            factor = tl.load(weight + i * D + c, mask=c < D, other=0.0).to(tl.float32)
            logits += tl.where(s[:, None] == i, tl.sum(factor[:, None] * tile, axis=0)[None, :], 0.0)
    share = tl.exp(logits - tl.max(logits, axis=0)[None, :])
    share /= tl.sum(share, axis=0)[None, :]
    shares = sample(shares, b, (SCALES + 1) * H * W)
    tl.store(shares + share_offsets(s, h, w, H, W), share, mask=(s <= SCALES)[:, None] & known[None, :])
    for c0 in range(0, D, BC):
        c = c0 + tl.arange(0, BC)
        inside = (c < D)[:, None] & known[None, :]
        at = pixels(c[:, None], h[None, :], w[None, :], D, H, W, NHWC)
        tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        tile += read_encoding(encoding, c, h, w, inside, H, W, PH, PW)
        for i in tl.static_range(SCALES):
            level = read_level(us[i], b, c, h, w, inside, D, H, W, i, NHWC)
            tile += row(share, i + 1, SHARES)[None, :] * level
        tl.store(z + at, tile, mask=inside)
