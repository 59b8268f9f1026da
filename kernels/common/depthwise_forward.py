"""Forward of the depthwise convolutions, and what backward shares with it: blocks of places, and windows of rows.

A thread computes Q rows of a few columns of every output. For each column of taps it loads Q + K - 1 rows of x, K the
largest kernel, once for all taps of all kernels there: with kernels 3, 5, 7 and 11, 26 * Q products of Q + 10 values.

A block is of channels and places: a place is Q rows of one column, and the places of a map are numbered row by row.
"""

import triton
import triton.language as tl

from .chain import begin
from .maps import channel_block, kernel, pixels, sample


@triton.jit
def places(c0, f0, C, H, W, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr):
    """Return the channels of a block of places, their first rows and their columns, and which there are.

    Channels are [BC, BF], so that taps lie in registers as x does, but a single one is [1, 1].
    """
    c = c0 + tl.arange(0, BC)[:, None]
    if BC > 1:
        c = tl.broadcast_to(c, [BC, BF])
    f = f0 + tl.arange(0, BF)[None, :]
    h = f // W * Q
    return c, h, f % W, (c < C) & (h < H)


@triton.jit
def part_of_places(H, W, Q: tl.constexpr, BF: tl.constexpr):
    """Return a program's first block of places and the first after its last; the grid's second axis parts a map."""
    blocks = tl.cdiv(tl.cdiv(H, Q) * W, BF)
    part = tl.cdiv(blocks, tl.num_programs(1))
    first = tl.program_id(1) * part
    return first, tl.minimum(first + part, blocks)


@triton.jit
def window(x, c, h, w, here, C, H, W, FIRST: tl.constexpr, COUNT: tl.constexpr, NHWC: tl.constexpr):
    """Return the rows h + FIRST, ... of x in columns w, zeros outside: COUNT tiles [BC, BF]."""
    row = W * C if NHWC else W
    at = x + pixels(c, h, w, C, H, W, NHWC)
    h = tl.where(here & (w >= 0) & (w < W), h, -(1 << 30))  # one comparison a row, which no loop keeps in registers
    rows = ()
    for t in tl.static_range(COUNT):
        inside = (h + (FIRST + t)).to(tl.uint32) < H.to(tl.uint32)
        rows += (tl.load(at + (FIRST + t) * row, mask=inside, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def add_taps(
    sums, rows, weights, c, dv, C, K: tl.constexpr, S: tl.constexpr, LARGEST: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    """Return the sums of one output plus what its kernel makes of the rows of x in a column dv to the right."""
    for u in tl.static_range(K):
        weight = tl.load(weights + (u * K + K // 2 + dv) * C + c, mask=c < C, other=0.0).to(tl.float32)
        more = ()
        for i in tl.static_range(Q // S):
            more += (sums[i] + rows[i * S + u + (LARGEST - K) // 2] * weight,)
        sums = more
    return sums


@kernel
def depthwise_kernel(
    x, weights,
    ys,  # J outputs
    C, H, W,
    J: tl.constexpr, KERNELS: tl.constexpr, STRIDES: tl.constexpr, LARGEST: tl.constexpr,
    NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the places)."""
    begin()
    C = C // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    x = sample(x, b, C * H * W)
    first, end = part_of_places(H, W, Q, BF)
    for block in range(first, end):
        c, h, w, here = places(c0, block * BF, C, H, W, Q, BC, BF)
        biases = weights
        for j in tl.static_range(J):
            biases += KERNELS[j] * KERNELS[j] * C
        sums = ()
        for j in tl.static_range(J):
            bias = tl.load(biases + j * C + c, mask=c < C, other=0.0).to(tl.float32)
            outputs = ()
            for _ in tl.static_range(Q // STRIDES[j]):
                outputs += (tl.zeros([BC, BF], tl.float32) + bias,)
            sums += (outputs,)
        for v in range(LARGEST):
            dv = v - LARGEST // 2
            rows = window(x, c, h, w + dv, here, C, H, W, -(LARGEST // 2), Q + LARGEST - 1, NHWC)
            taps = weights
            new = ()
            for j in tl.static_range(J):
                outputs = sums[j]
                if (dv >= -(KERNELS[j] // 2)) & (dv <= KERNELS[j] // 2):
                    outputs = add_taps(outputs, rows, taps, c, dv, C, KERNELS[j], STRIDES[j], LARGEST, Q)
                new += (outputs,)
                taps += KERNELS[j] * KERNELS[j] * C
            sums = new
        for j in tl.static_range(J):
            HJ, WJ = tl.cdiv(H, STRIDES[j]), tl.cdiv(W, STRIDES[j])
            row = WJ * C if NHWC else WJ
            at = sample(ys[j], b, C * HJ * WJ) + pixels(c, h // STRIDES[j], w // STRIDES[j], C, HJ, WJ, NHWC)
            for i in tl.static_range(Q // STRIDES[j]):
                mask = here & (h + i * STRIDES[j] < H) & (w % STRIDES[j] == 0)
                tl.store(at + i * row, sums[j][i], mask=mask)
