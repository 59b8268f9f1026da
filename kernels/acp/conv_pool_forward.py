"""Forward of the convolution with its pooling, and what backward shares with it: blocks of cells, and taps.

A block is of channels and cells: a cell is a window of the pooling, S x S pixels, of which its thread forms R rows at a
time from R + K - 1 rows of x in each column that the kernel reaches. The cells of a map are numbered row by row. What
backward needs of a window is the place of its maximum, i * S + j in a byte: the first of equal ones, the last NaN.
"""

import functools

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.depthwise_forward import part_of_places, window
from ..common.maps import channel_block, pixels, sample
from ..common.tuples import zeros

kernel = functools.partial(triton.jit, do_not_specialize=("B", "C", "H", "W", "XB"))


@triton.jit
def cells(block, c0, C, H, W, S: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr):
    """Return the channels of a block of cells, their rows and columns, and which there are: all but rows [BC, BF]."""
    c = tl.broadcast_to(c0 + tl.arange(0, BC)[:, None], [BC, BF])
    f = block * BF + tl.arange(0, BF)[None, :]
    columns = tl.cdiv(W, S)
    return c, f // columns, f % columns, (c < C) & (f < tl.cdiv(H, S) * columns)


@triton.jit
def tap(weights, u, v, c, C, K: tl.constexpr):
    """Return a tap of the kernel for each channel, zero beyond its columns."""
    inside = (c < C) & (v >= 0) & (v < K)
    return tl.load(weights + (u * K + v) * C + c, mask=inside, other=0.0).to(tl.float32)


@kernel
def conv_pool_kernel(
    x,
    weights,
    y,  # [B, C, ceil(H / S), ceil(W / S)]
    index,  # the same of bytes
    C, H, W, XB,
    K: tl.constexpr, S: tl.constexpr, R: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, SAVE: tl.constexpr,
    BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the cells)."""
    begin()
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    x = sample(x, b, XB)
    HP, WP = tl.cdiv(H, S), tl.cdiv(W, S)
    y, index = sample(y, b, C * HP * WP), sample(index, b, C * HP * WP)
    first, end = part_of_places(HP, WP, 1, BF)
    for block in range(first, end):
        c, row, column, here = cells(block, c0, C, H, W, S, BC, BF)
        most = tl.full([BC, BF], float("-inf"), tl.float32)
        place = tl.zeros([BC, BF], tl.int32)
        for i0 in range(0, S, R):
            sums = zeros(R * S, BC, BF)
            h = row * S + i0
            for q in range(S + K - 1):
                rows = window(x, c, h, column * S + q - K // 2, here, C, H, W, -(K // 2), R + K - 1, NHWC)
                for u in tl.static_range(K):
                    more = ()
                    for j in tl.static_range(S):
                        weight = tap(weights, u, q - j, c, C, K)
                        for i in tl.static_range(R):
                            more += (sums[j * R + i] + rows[i + u] * weight,)
                    sums = more
            for i in tl.static_range(R):
                for j in tl.static_range(S):
                    value = sums[j * R + i]
                    better = (h + i < H) & (column * S + j < W) & ((value > most) | (value != value))
                    most = tl.where(better, value, most)
                    place = tl.where(better, (i0 + i) * S + j, place)
        most += tl.load(weights + K * K * C + c, mask=c < C, other=0.0).to(tl.float32)
        at = pixels(c, row, column, C, HP, WP, NHWC)
        tl.store(y + at, most, mask=here)
        if SAVE:
            tl.store(index + at, place.to(tl.uint8), mask=here)
