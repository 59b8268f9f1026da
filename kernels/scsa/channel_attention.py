"""Channel attention reduced to its gate: rows of C x C are formed from the pooled map, used and forgotten.

A tile is [BI, BJ]: the block's own channels against all channels of their heads. It holds whole rows, so neither
the softmax nor the gradients need a second sweep or another program's result. Where there are many pooled pixels, BN
of them at a time are summed by products of matrices, in full float32; else BN is 1 and each is added by itself.

Gradients are made of value_j - output_i, which cancels where a row is nearly one-hot. So the output is kept as the
value at the row's largest score and what the others add to it: (value_j - top_i) - rest_i is exact to rounding. So is
exp(score - largest) / sum, where one exponent with the logarithm of the sum in it would carry a large score's rounding.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import sample
from .layout import EPSILON, kernel, saved_channels

QUERY, KEY, VALUE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def pooled_statistics(pooled, count, BLOCK: tl.constexpr):
    """Mean and 1 / standard deviation of all of a sample's pooled values."""
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        total += tl.load(pooled + start + offsets, mask=start + offsets < count, other=0.0)
    mean = tl.sum(total, axis=0) / count
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        inside = start + offsets < count
        value = tl.where(inside, tl.load(pooled + start + offsets, mask=inside, other=0.0) - mean, 0.0)
        squares += value * value
    return mean, 1.0 / tl.sqrt(tl.sum(squares, axis=0) / count + EPSILON)


@triton.jit
def projection(attention, ROLE: tl.constexpr, c, inside, scale, BIAS: tl.constexpr):
    """Factor and offset that take a centred pooled value to a query, key or value."""
    w = tl.load(attention[2 + ROLE] + c, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(attention[1] + c, mask=inside, other=0.0).to(tl.float32) * w
    if BIAS:
        offset += tl.load(attention[5 + ROLE] + c, mask=inside, other=0.0).to(tl.float32)
    return tl.load(attention[0] + c, mask=inside, other=0.0).to(tl.float32) * w * scale, offset


@triton.jit
def temperature(D):
    """Factor of the scores, 1 / sqrt(channels of a head)."""
    return 1.0 / tl.sqrt(D.to(tl.float32))


@triton.jit
def same_head(i, j, C, D):
    """Whether channel j [BJ] is in the head of channel i [BI]: [BI, BJ]; rows beyond C repeat the last head."""
    return ((tl.minimum(i, C - 1) // D)[:, None] == (j // D)[None, :]) & (j < C)[None, :]


@triton.jit
def centred(pooled, c, n0, mean, C, N, BN: tl.constexpr):
    """Pooled values of channels c at the BN pixels from n0 on, less their mean, and which there are: [c, BN]."""
    n = n0 + tl.arange(0, BN)
    inside = (c < C)[:, None] & (n < N)[None, :]
    return tl.where(inside, tl.load(pooled + n[None, :] * C + c[:, None], mask=inside, other=0.0) - mean, 0.0), inside


@triton.jit
def linear(y, factor, offset, inside):
    """Queries or keys of centred values [c, BN], 0 where there are none."""
    return tl.where(inside, y * factor[:, None] + offset[:, None], 0.0)


@triton.jit
def attention_gates(
    pooled, gate, rows, mean, scale,
    attention, i0, C, N, D,
    BIAS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sigmoid of attention's output for the channels from i0 on, and what backward needs of these rows."""
    i = i0 + tl.arange(0, BI)
    j = i0 // D * D + tl.arange(0, BJ)
    q_factor, q_offset = projection(attention, QUERY, i, i < C, scale, BIAS)
    k_factor, k_offset = projection(attention, KEY, j, j < C, scale, BIAS)
    v_factor, v_offset = projection(attention, VALUE, j, j < C, scale, BIAS)
    scores = tl.zeros([BI, BJ], tl.float32)
    total = tl.zeros([BJ], tl.float32)
    for n in range(0, N, BN):
        if BN == 1:
            y_i = tl.load(pooled + n * C + i, mask=i < C, other=0.0) - mean
            y_j = tl.load(pooled + n * C + j, mask=j < C, other=0.0) - mean
            scores += (y_i * q_factor + q_offset)[:, None] * (y_j * k_factor + k_offset)[None, :]
            total += y_j
        else:
            y_i, own = centred(pooled, i, n, mean, C, N, BN)
            y_j, other = centred(pooled, j, n, mean, C, N, BN)
            key = tl.trans(linear(y_j, k_factor, k_offset, other))
            scores = tl.dot(linear(y_i, q_factor, q_offset, own), key, scores, input_precision="ieee")
            total += tl.sum(y_j, axis=1)
    value = total / N * v_factor + v_offset
    scores = tl.where(same_head(i, j, C, D), scores * temperature(D), float("-inf"))
    top = tl.max(scores, axis=1)
    powers = tl.exp(scores - top[:, None])
    powers_sum = tl.sum(powers, axis=1)
    places = tl.arange(0, BJ)[None, :]
    first = tl.min(tl.where(scores == top[:, None], places, BJ), axis=1)
    top_value = tl.sum(tl.where(places == first[:, None], value[None, :], 0.0), axis=1)
    rest = tl.sum(powers * (value[None, :] - top_value[:, None]), axis=1) / powers_sum
    tl.store(rows + j, value, mask=j < C)
    tl.store(rows + C + i, top_value, mask=i < C)
    tl.store(rows + 2 * C + i, rest, mask=i < C)
    tl.store(rows + 3 * C + i, top, mask=i < C)
    tl.store(rows + 4 * C + i, powers_sum, mask=i < C)
    tl.store(gate + i, tl.sigmoid(top_value + rest), mask=i < C)


@triton.jit
def attention_output(rows, c, C):
    """Attention's output for channels c, -inf beyond the last."""
    top = tl.load(rows + C + c, mask=c < C, other=float("-inf"))
    return top + tl.load(rows + 2 * C + c, mask=c < C, other=0.0)


@triton.jit
def softmax_gates(gate, rows, C, BLOCK: tl.constexpr):
    """Replace a sample's gates by the softmax of attention's output over all channels."""
    offsets = tl.arange(0, BLOCK)
    tops = tl.full([BLOCK], float("-inf"), tl.float32)
    for c0 in range(0, C, BLOCK):
        tops = tl.maximum(tops, attention_output(rows, c0 + offsets, C))
    top = tl.max(tops, axis=0)
    sums = tl.zeros([BLOCK], tl.float32)
    for c0 in range(0, C, BLOCK):
        sums += tl.exp(attention_output(rows, c0 + offsets, C) - top)
    total = tl.sum(sums, axis=0)
    for c0 in range(0, C, BLOCK):
        powers = tl.exp(attention_output(rows, c0 + offsets, C) - top)
        tl.store(gate + c0 + offsets, powers / total, mask=c0 + offsets < C)


@triton.jit
def channel_attention(
    statistics, pooled, gate, rows,
    attention, i0, i1, C, N, D,
    BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, POOLED_BLOCK: tl.constexpr,
):  # fmt: skip
    """Gates of the channels i0 to i1 of a sample; of all of them with a softmax."""
    mean, scale = pooled_statistics(pooled, C * N, POOLED_BLOCK)
    tl.store(statistics, mean)
    tl.store(statistics + 1, scale)
    for i in range(i0, i1, BI):
        attention_gates(
            pooled, gate, rows, mean, scale,
            attention, i, C, N, D,
            BIAS, BI, BJ, BN,
        )  # fmt: skip
    if SOFTMAX:
        tl.debug_barrier()
        softmax_gates(gate, rows, C, BLOCK)


@kernel
def channel_attention_kernel(
    saved, attention,
    C, H, W, NI, NJ, D, SAVED, ROWS,
    SPATIAL: tl.constexpr, BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, POOLED_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks of ROWS channels)."""
    begin()
    saved = sample(saved, tl.program_id(0), SAVED)
    statistics, gate, rows, pooled, _ = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    i0 = tl.program_id(1) * ROWS
    channel_attention(
        statistics, pooled, gate, rows,
        attention,
        i0, tl.minimum(i0 + ROWS, C), C, NI * NJ, D, BIAS, SOFTMAX, BI, BJ, BN, BLOCK, POOLED_BLOCK,
    )  # fmt: skip
