"""Backward of `channel_attention`, in tiles as there: from dg to the parameters' gradients and dy, in `scratch`."""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import sample
from .channel_attention import KEY, QUERY, centred, linear, projection, same_head, temperature
from .layout import kernel, saved_channels, scratch_channels


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
def score_gradients(
    pooled, gate, rows, dg, mean, shift, of_i, of_j, i, j, C, N, D, PARTS,
    SOFTMAX: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of the scores of channels i as queries, and as keys, both [BI, BJ], of their values over a pixel, and
    the sums of what is pooled of them; of_i and of_j are the projections to queries and to keys.
    """
    own, other = i < C, j < C
    q_i, q_i0, k_i, k_i0 = of_i
    q_j, q_j0, k_j, k_j0 = of_j
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
    return by_row, by_column, d_value, total_i


@triton.jit
def attention_gradients(
    pooled, gate, rows, dg, dy, grads, mean, scale, shift,
    attention, i0, C, N, D, PARTS,
    BIAS: tl.constexpr, SOFTMAX: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradient of the normalised pooled map for the channels from i0 on, as queries, keys and values.

    Row tiles hold the attention of own queries to all keys, column tiles that of all queries to own keys.
    """
    i = i0 + tl.arange(0, BI)
    j = i0 // D * D + tl.arange(0, BJ)
    own, other = i < C, j < C
    q_i, q_i0 = projection(attention, QUERY, i, own, scale, BIAS)
    k_i, k_i0 = projection(attention, KEY, i, own, scale, BIAS)
    q_j, q_j0 = projection(attention, QUERY, j, other, scale, BIAS)
    k_j, k_j0 = projection(attention, KEY, j, other, scale, BIAS)
    by_row, by_column, d_value, total_i = score_gradients(
        pooled, gate, rows, dg, mean, shift, (q_i, q_i0, k_i, k_i0), (q_j, q_j0, k_j, k_j0), i, j, C, N, D, PARTS,
        SOFTMAX, BI, BJ, BN,
    )  # fmt: skip
    norm_w = tl.load(attention[0] + i, mask=own, other=0.0).to(tl.float32)
    norm_b = tl.load(attention[1] + i, mask=own, other=0.0).to(tl.float32)
    q_w = tl.load(attention[2] + i, mask=own, other=0.0).to(tl.float32)
    k_w = tl.load(attention[3] + i, mask=own, other=0.0).to(tl.float32)
    v_w = tl.load(attention[4] + i, mask=own, other=0.0).to(tl.float32)
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
    attention, i0, i1, C, N, D, PARTS,
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
            attention, i, C, N, D, PARTS,
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
    saved, scratch, attention,
    C, H, W, NI, NJ, D, PARTS, SAVED, SCRATCH, ROWS,
    SPATIAL: tl.constexpr, MAX: tl.constexpr, BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks of ROWS channels)."""
    begin()
    saved = sample(saved, tl.program_id(0), SAVED)
    scratch = sample(scratch, tl.program_id(0), SCRATCH)
    statistics, gate, rows, pooled, _ = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    dg, dy = scratch_channels(scratch, C, H, W, NI, NJ, PARTS, SPATIAL, MAX)
    grads = scratch + SCRATCH - (8 if BIAS else 5) * C
    i0 = tl.program_id(1) * ROWS
    channel_attention_gradients(
        statistics, pooled, gate, rows, dg, dy, grads,
        attention,
        i0, tl.minimum(i0 + ROWS, C), C, NI * NJ, D, PARTS, BIAS, SOFTMAX, BI, BJ, BN, BLOCK,
    )  # fmt: skip


@kernel
def pooled_gradient_kernel(
    saved, scratch, norm_weight, C, H, W, WH, WW, NI, NJ, PARTS, SAVED, SCRATCH,
    SPATIAL: tl.constexpr, MAX: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks of BLOCK channels)."""
    begin()
    saved = sample(saved, tl.program_id(0), SAVED)
    scratch = sample(scratch, tl.program_id(0), SCRATCH)
    statistics, _, _, pooled, _ = saved_channels(saved, C, H, W, NI * NJ, SPATIAL)
    _, dy = scratch_channels(scratch, C, H, W, NI, NJ, PARTS, SPATIAL, MAX)
    grads = scratch + SCRATCH - (8 if BIAS else 5) * C
    c0 = tl.program_id(1) * BLOCK
    c1 = tl.minimum(c0 + BLOCK, C)
    pooled_gradients(statistics, pooled, dy, grads, norm_weight, c0, c1, C, NI * NJ, 1 if MAX else WH * WW, BLOCK)
