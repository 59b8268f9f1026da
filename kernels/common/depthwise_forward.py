"""Forward of the depthwise convolutions, and what backward shares with it: blocks of places, and windows of rows.

A thread computes Q rows of a few columns of every output. For each column of taps it loads Q + K - 1 rows of x, K the
largest kernel, once for all taps of all kernels there: with kernels 3, 5, 7 and 11, 26 * Q products of Q + 10 values.

A block is of channels and places: a place is Q rows of one column, and the places of a map are numbered row by row.
"""

import triton
import triton.language as tl

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
    x, weights, y_0, y_1, y_2, y_3, y_4, y_5, y_6, y_7, C, H, W,
    J: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    K4: tl.constexpr, K5: tl.constexpr, K6: tl.constexpr, K7: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr,
    S4: tl.constexpr, S5: tl.constexpr, S6: tl.constexpr, S7: tl.constexpr,
    LARGEST: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the places)."""
    ys = (y_0, y_1, y_2, y_3, y_4, y_5, y_6, y_7)
    kernels: tl.constexpr = (K0, K1, K2, K3, K4, K5, K6, K7)
    strides: tl.constexpr = (S0, S1, S2, S3, S4, S5, S6, S7)
    C = C // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    x = sample(x, b, C * H * W)
    first, end = part_of_places(H, W, Q, BF)
    for block in range(first, end):
        c, h, w, here = places(c0, block * BF, C, H, W, Q, BC, BF)
        biases = weights
        for j in tl.static_range(J):
            biases += kernels[j] * kernels[j] * C
        sums = ()
        for j in tl.static_range(J):
            bias = tl.load(biases + j * C + c, mask=c < C, other=0.0).to(tl.float32)
            outputs = ()
            for _ in tl.static_range(Q // strides[j]):
                outputs += (tl.zeros([BC, BF], tl.float32) + bias,)
            sums += (outputs,)
        for v in range(LARGEST):
            dv = v - LARGEST // 2
            rows = window(x, c, h, w + dv, here, C, H, W, -(LARGEST // 2), Q + LARGEST - 1, NHWC)
            taps = weights
            new = ()
            for j in tl.static_range(J):
                outputs = sums[j]
                if (dv >= -(kernels[j] // 2)) & (dv <= kernels[j] // 2):
                    outputs = add_taps(outputs, rows, taps, c, dv, C, kernels[j], strides[j], LARGEST, Q)
                new += (outputs,)
                taps += kernels[j] * kernels[j] * C
            sums = new
        for j in tl.static_range(J):
            HJ, WJ = tl.cdiv(H, strides[j]), tl.cdiv(W, strides[j])
            row = WJ * C if NHWC else WJ
            at = sample(ys[j], b, C * HJ * WJ) + pixels(c, h // strides[j], w // strides[j], C, HJ, WJ, NHWC)
            for i in tl.static_range(Q // strides[j]):
                mask = here & (h + i * strides[j] < H) & (w % strides[j] == 0)
                tl.store(at + i * row, sums[j][i], mask=mask)
