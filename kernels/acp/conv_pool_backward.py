"""Backward of the convolution with its pooling: what a window's maximum was given goes to the taps and pixels that
made it. The parameters' gradients are in parts, for `batch_sum`.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.depthwise_forward import part_of_places, window
from ..common.maps import channel_block, pixels, sample
from ..common.tuples import zeros
from .conv_pool_forward import cells, kernel, tap


@triton.jit
def maxima(
    grad, index, c, row, column, here, i, j, C, HP, WP, K: tl.constexpr, S: tl.constexpr, NHWC: tl.constexpr
):  # fmt: skip
    """Return the gradients of the convolution's outputs, i rows below and j columns right of the windows' first."""
    down, right = (i + K * S) // S - K, (j + K * S) // S - K  # windows
    row, column = row + down, column + right
    inside = here & (row >= 0) & (row < HP) & (column >= 0) & (column < WP)
    at = pixels(c, row, column, C, HP, WP, NHWC)
    value = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    place = tl.load(index + at, mask=inside, other=0).to(tl.int32)
    return tl.where(place == (i - down * S) * S + j - right * S, value, 0.0)


@kernel
def conv_pool_input_kernel(
    grad, index, weights,
    grad_x,  # holds what is added
    C, H, W, XB,
    K: tl.constexpr, S: tl.constexpr, R: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
    BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Add the gradient of x; grid (samples x blocks of channels, parts of the cells)."""
    begin()
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    grad_x = sample(grad_x, b, XB)
    HP, WP = tl.cdiv(H, S), tl.cdiv(W, S)
    grad, index = sample(grad, b, C * HP * WP), sample(index, b, C * HP * WP)
    first, end = part_of_places(HP, WP, 1, BF)
    for block in range(first, end):
        c, row, column, here = cells(block, c0, C, H, W, S, BC, BF)
        for i0 in range(0, S, R):
            sums = zeros(R * S, BC, BF)
            for q in range(S + K - 1):
                rows = ()
                for t in tl.static_range(R + K - 1):
                    at = i0 + t - K // 2
                    rows += (maxima(grad, index, c, row, column, here, at, q - K // 2, C, HP, WP, K, S, NHWC),)
                for u in tl.static_range(K):
                    more = ()
                    for j in tl.static_range(S):
                        weight = tap(weights, u, j - q + K - 1, c, C, K)
                        for i in tl.static_range(R):
                            more += (sums[j * R + i] + rows[i - u + K - 1] * weight,)
                    sums = more
            for i in tl.static_range(R):
                for j in tl.static_range(S):
                    h, w = row * S + i0 + i, column * S + j
                    inside = here & (h < H) & (w < W)
                    at = grad_x + pixels(c, h, w, C, H, W, NHWC)
                    tl.store(at, sums[j * R + i] + tl.load(at, mask=inside, other=0.0).to(tl.float32), mask=inside)


@kernel
def conv_pool_params_kernel(
    grad, index, x,
    scratch,  # [parts, C * K * K + C]: weights like (C, K, K), then biases
    B, C, H, W, XB,
    K: tl.constexpr, S: tl.constexpr, R: tl.constexpr, V: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
    PART: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (parts of all samples' cells x blocks of channels); a part is PART blocks of cells, read again for every V
    columns of taps."""
    begin()
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    part, c0 = channel_block(C, BC)
    HP, WP = tl.cdiv(H, S), tl.cdiv(W, S)
    blocks = tl.cdiv(HP * WP, BF)  # of one sample
    first = part * PART
    end = tl.minimum(first + PART, B * blocks)
    scratch = sample(scratch, part, C * (K * K + 1))
    channel = c0 + tl.arange(0, BC)
    for v0 in range(0, K, V):
        sums = zeros(K * V, BC, BF)
        total = tl.zeros([BC, BF], tl.float32)
        for block in range(first, end):
            b = block // blocks
            c, row, column, here = cells(block % blocks, c0, C, H, W, S, BC, BF)
            at = pixels(c, row, column, C, HP, WP, NHWC)
            g = tl.load(sample(grad, b, C * HP * WP) + at, mask=here, other=0.0).to(tl.float32)
            place = tl.load(sample(index, b, C * HP * WP) + at, mask=here, other=0).to(tl.int32)
            for i0 in range(0, S, R):
                for j in tl.static_range(S):
                    given = ()
                    for i in tl.static_range(R):
                        given += (tl.where(place == (i0 + i) * S + j, g, 0.0),)
                    more = ()
                    for v in tl.static_range(V):
                        w = column * S + v0 + (j + v - K // 2)
                        rows = window(sample(x, b, XB), c, row * S + i0, w, here, C, H, W, -(K // 2), R + K - 1, NHWC)
                        for u in tl.static_range(K):
                            tap_sum = sums[v * K + u]
                            for i in tl.static_range(R):
                                tap_sum += rows[i + u] * given[i]
                            more += (tap_sum,)
                    sums = more
            total += g
        for v in tl.static_range(V):
            for u in tl.static_range(K):
                at = scratch + (channel * K + u) * K + v0 + v
                tl.store(at, tl.sum(sums[v * K + u], axis=1), mask=channel < C)
        tl.store(scratch + C * K * K + channel, tl.sum(total, axis=1), mask=channel < C)
