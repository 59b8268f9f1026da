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

from ..common.maps import sample
from .layout import EPSILON, kernel, saved_channels, scratch_channels


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
def projection(norm_weight, norm_bias, weight, bias, c, inside, scale, BIAS: tl.constexpr):
    """Factor and offset that take a centred pooled value to a query, key or value."""
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(norm_bias + c, mask=inside, other=0.0).to(tl.float32) * w
    if BIAS:
        offset += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    return tl.load(norm_weight + c, mask=inside, other=0.0).to(tl.float32) * w * scale, offset


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
def weighted_sums(weights, values):
    """Products of weights [BI, BJ] with values [BJ, BN], in parts: of whole rows a thread would hold too much."""
    BI: tl.constexpr = weights.shape[0]
    BK: tl.constexpr = 16
    PARTS: tl.constexpr = weights.shape[1] // BK
    weights = tl.permute(tl.reshape(weights, [BI, PARTS, BK]), (1, 0, 2))
    values = tl.reshape(values, [PARTS, BK, values.shape[1]])
    return tl.sum(tl.dot(weights, values, input_precision="ieee"), axis=0)


@triton.jit
def attention_gates(
    pooled, gate, rows, mean, scale,
    norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, i0, C, N, D,
    BIAS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sigmoid of attention's output for the channels from i0 on, and what backward needs of these rows."""
    i = i0 + tl.arange(0, BI)
    j = i0 // D * D + tl.arange(0, BJ)
    q_factor, q_offset = projection(norm_weight, norm_bias, q_weight, q_bias, i, i < C, scale, BIAS)
    k_factor, k_offset = projection(norm_weight, norm_bias, k_weight, k_bias, j, j < C, scale, BIAS)
    v_factor, v_offset = projection(norm_weight, norm_bias, v_weight, v_bias, j, j < C, scale, BIAS)
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
    norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, i0, i1, C, N, D,
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
            norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, i, C, N, D,
            BIAS, BI, BJ, BN,
        )  # fmt: skip
    if SOFTMAX:
        tl.debug_barrier()
        softmax_gates(gate, rows, C, BLOCK)


@kernel
def channel_attention_kernel(
    saved, norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias,
    C, H, W, NI, NJ, D, SAVED, ROWS,
    SPATIAL: tl.constexpr, BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, POOLED_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks of ROWS channels)."""
    saved = sample(saved, tl.program_id(0), SAVED)
    statistics, gate, rows, pooled, _ = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    i0 = tl.program_id(1) * ROWS
    channel_attention(
        statistics, pooled, gate, rows,
        norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias,
        i0, tl.minimum(i0 + ROWS, C), C, NI * NJ, D, BIAS, SOFTMAX, BI, BJ, BN, BLOCK, POOLED_BLOCK,
    )  # fmt: skip


@triton.jit
def gate_gradient(dg, gate, c, inside, C, PARTS, shift):
    """Gradient of the logits of channels c, given the sum of gate * gradient for a softmax (0 for a sigmoid)."""
    g = tl.load(gate + c, mask=inside, other=0.0)
    total = tl.zeros(c.shape, tl.float32)
    for part in range(PARTS):
        total += tl.load(dg + part * C + c, mask=inside, other=0.0)
    return g, total - shift


@triton.jit
def softmax_shift(dg, gate, C, PARTS, BLOCK: tl.constexpr):
    """Sum of gate * gradient over a sample's channels."""
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for c0 in range(0, C, BLOCK):
        g, gradient = gate_gradient(dg, gate, c0 + offsets, c0 + offsets < C, C, PARTS, 0.0)
        total += g * gradient
    return tl.sum(total, axis=0)


@triton.jit
def row_vectors(rows, c, inside, C):
    """Of channels c the value, the value at the largest score, the rest of the output, that score, the sum."""
    value = tl.load(rows + c, mask=inside, other=0.0)
    top = tl.load(rows + C + c, mask=inside, other=0.0)
    rest = tl.load(rows + 2 * C + c, mask=inside, other=0.0)
    score = tl.load(rows + 3 * C + c, mask=inside, other=0.0)
    return value, top, rest, score, tl.load(rows + 4 * C + c, mask=inside, other=1.0)


@triton.jit
def attention_gradients(
    pooled, gate, rows, dg, dy, grads, mean, scale, shift,
    norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, i0, C, N, D, PARTS,
    BIAS: tl.constexpr, SOFTMAX: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradient of the normalised pooled map for the channels from i0 on, as queries, keys and values.

    Row tiles hold the attention of own queries to all keys, column tiles that of all queries to own keys.
    """
    i = i0 + tl.arange(0, BI)
    j = i0 // D * D + tl.arange(0, BJ)
    own, other = i < C, j < C
    q_i, q_i0 = projection(norm_weight, norm_bias, q_weight, q_bias, i, own, scale, BIAS)
    k_i, k_i0 = projection(norm_weight, norm_bias, k_weight, k_bias, i, own, scale, BIAS)
    q_j, q_j0 = projection(norm_weight, norm_bias, q_weight, q_bias, j, other, scale, BIAS)
    k_j, k_j0 = projection(norm_weight, norm_bias, k_weight, k_bias, j, other, scale, BIAS)
    by_row = tl.zeros([BI, BJ], tl.float32)
    by_column = tl.zeros([BI, BJ], tl.float32)
    total_i = tl.zeros([BI], tl.float32)
    for n in range(0, N, BN):
        if BN == 1:
            y_i = tl.load(pooled + n * C + i, mask=own, other=0.0) - mean
            y_j = tl.load(pooled + n * C + j, mask=other, other=0.0) - mean
            by_row += (y_i * q_i + q_i0)[:, None] * (y_j * k_j + k_j0)[None, :]
            by_column += (y_i * k_i + k_i0)[:, None] * (y_j * q_j + q_j0)[None, :]
            total_i += y_i
        else:
            y_i, inside_i = centred(pooled, i, n, mean, C, N, BN)
            y_j, inside_j = centred(pooled, j, n, mean, C, N, BN)
            key_j = tl.trans(linear(y_j, k_j, k_j0, inside_j))
            query_j = tl.trans(linear(y_j, q_j, q_j0, inside_j))
            by_row = tl.dot(linear(y_i, q_i, q_i0, inside_i), key_j, by_row, input_precision="ieee")
            by_column = tl.dot(linear(y_i, k_i, k_i0, inside_i), query_j, by_column, input_precision="ieee")
            total_i += tl.sum(y_i, axis=1)
    g, d_i = gate_gradient(dg, gate, i, own, C, PARTS, shift)
    d_i *= g if SOFTMAX else g * (1.0 - g)
    g, d_j = gate_gradient(dg, gate, j, other, C, PARTS, shift)
    d_j *= g if SOFTMAX else g * (1.0 - g)
    mask = same_head(i, j, C, D)
    value_i, top_i, rest_i, score_i, sum_i = row_vectors(rows, i, own, C)
    value_j, top_j, rest_j, score_j, sum_j = row_vectors(rows, j, other, C)
    by_row = tl.where(mask, tl.exp(by_row * temperature(D) - score_i[:, None]), 0.0)
    by_column = tl.where(mask, tl.exp(by_column * temperature(D) - score_j[None, :]), 0.0)
    d_i /= sum_i
    d_j /= sum_j
    d_value = tl.sum(by_column * d_j[None, :], axis=1) / N
    by_row *= ((value_j[None, :] - top_i[:, None]) - rest_i[:, None]) * (d_i * temperature(D))[:, None]
    by_column *= ((value_i[:, None] - top_j[None, :]) - rest_j[None, :]) * (d_j * temperature(D))[None, :]

    norm_w = tl.load(norm_weight + i, mask=own, other=0.0).to(tl.float32)
    norm_b = tl.load(norm_bias + i, mask=own, other=0.0).to(tl.float32)
    q_w = tl.load(q_weight + i, mask=own, other=0.0).to(tl.float32)
    k_w = tl.load(k_weight + i, mask=own, other=0.0).to(tl.float32)
    v_w = tl.load(v_weight + i, mask=own, other=0.0).to(tl.float32)
    d_norm_w = tl.zeros([BI], tl.float32)
    d_norm_b = tl.zeros([BI], tl.float32)
    d_q_w = tl.zeros([BI], tl.float32)
    d_k_w = tl.zeros([BI], tl.float32)
    d_q_b = tl.zeros([BI], tl.float32)
    d_k_b = tl.zeros([BI], tl.float32)
    for n in range(0, N, BN):
        if BN == 1:
            y_i = (tl.load(pooled + n * C + i, mask=own, other=0.0) - mean) * scale
            y_j = tl.load(pooled + n * C + j, mask=other, other=0.0) - mean
            d_q = tl.sum(by_row * (y_j * k_j + k_j0)[None, :], axis=1)
            d_k = tl.sum(by_column * (y_j * q_j + q_j0)[None, :], axis=1)
            gradient = d_q * q_w + d_k * k_w + d_value * v_w
            tl.store(dy + n * C + i, gradient, mask=own)
            normalised = y_i * norm_w + norm_b
            d_q_w += d_q * normalised
            d_k_w += d_k * normalised
            d_q_b += d_q
            d_k_b += d_k
            d_norm_w += gradient * y_i
            d_norm_b += gradient
        else:
            y_i, inside_i = centred(pooled, i, n, mean, C, N, BN)
            y_j, inside_j = centred(pooled, j, n, mean, C, N, BN)
            d_q = weighted_sums(by_row, linear(y_j, k_j, k_j0, inside_j))  # [BI, BN]
            d_k = weighted_sums(by_column, linear(y_j, q_j, q_j0, inside_j))
            gradient = d_q * q_w[:, None] + d_k * k_w[:, None] + (d_value * v_w)[:, None]
            gradient = tl.where(inside_i, gradient, 0.0)
            tl.store(dy + (n + tl.arange(0, BN))[None, :] * C + i[:, None], gradient, mask=inside_i)
            y_i *= scale
            normalised = tl.where(inside_i, y_i * norm_w[:, None] + norm_b[:, None], 0.0)
            d_q_w += tl.sum(d_q * normalised, axis=1)
            d_k_w += tl.sum(d_k * normalised, axis=1)
            d_q_b += tl.sum(d_q, axis=1)
            d_k_b += tl.sum(d_k, axis=1)
            d_norm_w += tl.sum(gradient * y_i, axis=1)
            d_norm_b += tl.sum(gradient, axis=1)
    mean_i = total_i / N * scale * norm_w + norm_b
    tl.store(grads + i, d_norm_w, mask=own)
    tl.store(grads + C + i, d_norm_b, mask=own)
    tl.store(grads + 2 * C + i, d_q_w, mask=own)
    tl.store(grads + 3 * C + i, d_k_w, mask=own)
    tl.store(grads + 4 * C + i, d_value * N * mean_i, mask=own)
    if BIAS:
        tl.store(grads + 5 * C + i, d_q_b, mask=own)
        tl.store(grads + 6 * C + i, d_k_b, mask=own)
        tl.store(grads + 7 * C + i, d_value * N, mask=own)


@triton.jit
def channel_attention_gradients(
    statistics, pooled, gate, rows, dg, dy, grads,
    norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, i0, i1, C, N, D, PARTS,
    BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients for the channels i0 to i1 of a sample; `grads` are those of this operation's parameters."""
    mean, scale = tl.load(statistics), tl.load(statistics + 1)
    shift = 0.0
    if SOFTMAX:
        shift = softmax_shift(dg, gate, C, PARTS, BLOCK)
    for i in range(i0, i1, BI):
        attention_gradients(
            pooled, gate, rows, dg, dy, grads, mean, scale, shift,
            norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, i, C, N, D, PARTS,
            BIAS, SOFTMAX, BI, BJ, BN,
        )  # fmt: skip


@triton.jit
def pooled_gradients(
    statistics, pooled, dy, grads, norm_weight, c0, c1, C, N, area, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take dy of the channels c0 to c1 back through normalisation and average over an area, in place.

    The sums that this needs over the sample are those of weight * gradient for its weights and its biases.
    """
    mean, scale = tl.load(statistics), tl.load(statistics + 1)
    offsets = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK):
        inside = start + offsets < C
        weight = tl.load(norm_weight + start + offsets, mask=inside, other=0.0).to(tl.float32)
        products += weight * tl.load(grads + start + offsets, mask=inside, other=0.0)
        sums += weight * tl.load(grads + C + start + offsets, mask=inside, other=0.0)
    first = tl.sum(sums, axis=0) / (C * N)
    second = tl.sum(products, axis=0) / (C * N)
    for start in range(c0, c1, BLOCK):
        c = start + offsets
        weight = tl.load(norm_weight + c, mask=c < c1, other=0.0).to(tl.float32)
        for n in range(N):
            y = (tl.load(pooled + n * C + c, mask=c < c1, other=0.0) - mean) * scale
            gradient = tl.load(dy + n * C + c, mask=c < c1, other=0.0)
            tl.store(dy + n * C + c, scale / area * (weight * gradient - first - y * second), mask=c < c1)


@kernel
def channel_attention_backward_kernel(
    saved, scratch, norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias,
    C, H, W, NI, NJ, D, PARTS, SAVED, SCRATCH, ROWS,
    SPATIAL: tl.constexpr, MAX: tl.constexpr, BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks of ROWS channels)."""
    saved = sample(saved, tl.program_id(0), SAVED)
    scratch = sample(scratch, tl.program_id(0), SCRATCH)
    statistics, gate, rows, pooled, _ = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    dg, dy = scratch_channels(scratch, C, H, W, NI, NJ, PARTS, SPATIAL, MAX)
    grads = scratch + SCRATCH - (8 if BIAS else 5) * C
    i0 = tl.program_id(1) * ROWS
    channel_attention_gradients(
        statistics, pooled, gate, rows, dg, dy, grads,
        norm_weight, norm_bias, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias,
        i0, tl.minimum(i0 + ROWS, C), C, NI * NJ, D, PARTS, BIAS, SOFTMAX, BI, BJ, BN, BLOCK,
    )  # fmt: skip


@kernel
def pooled_gradient_kernel(
    saved, scratch, norm_weight, C, H, W, WH, WW, NI, NJ, PARTS, SAVED, SCRATCH,
    SPATIAL: tl.constexpr, MAX: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks of BLOCK channels)."""
    saved = sample(saved, tl.program_id(0), SAVED)
    scratch = sample(scratch, tl.program_id(0), SCRATCH)
    statistics, _, _, pooled, _ = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    _, dy = scratch_channels(scratch, C, H, W, NI, NJ, PARTS, SPATIAL, MAX)
    grads = scratch + SCRATCH - (8 if BIAS else 5) * C
    c0 = tl.program_id(1) * BLOCK
    c1 = tl.minimum(c0 + BLOCK, C)
    pooled_gradients(statistics, pooled, dy, grads, norm_weight, c0, c1, C, NI * NJ, 1 if MAX else WH * WW, BLOCK)
