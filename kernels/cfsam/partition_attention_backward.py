"""Backward of attention within parts, which forms the scores again: the gradients of the queries, then of the keys and
values. A program owns the rows that it writes: no sum is atomic.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from .partition_attention_forward import LOG2_E, first, kernel, place, rows, store_rows, vector


@triton.jit
def query_gradients(
    acc, mean, slope, q, grad, log, delta, k, v, n, LENGTH, PARTS, KN, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MEND: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add what one block of keys gives to the gradients of the queries, and to mend delta by: the rows' mean keys and
    the sums of their slopes."""
    keys = rows(k, n, LENGTH, PARTS, KN, D, ALIGN, MASKED)
    values = rows(v, n, LENGTH, PARTS, VN, D, ALIGN, MASKED)
    weights = tl.exp2(tl.dot(q, tl.trans(keys), input_precision=PRECISION) * SCALE - log[:, None])  # [BM, BN]
    if MASKED:  # a masked key's zero score may lie far above the row's
        weights = tl.where((n < LENGTH)[None, :], weights, 0.0)
    slopes = weights * (tl.dot(grad, tl.trans(values), input_precision=PRECISION) - delta[:, None])
    if MEND:
        mean = tl.dot(weights.to(keys.dtype), keys, mean, input_precision=PRECISION)
        slope += tl.sum(slopes, axis=1)
    return tl.dot(slopes.to(keys.dtype), keys, acc, input_precision=PRECISION), mean, slope


@kernel
def query_gradient_kernel(
    q, k, v, out, grad_out, logsumexp, delta, grad_q, B, LENGTH, PARTS, HEADS, QB, QN, KB, KN, VB, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    MEND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the queries, and delta for those of keys and values; grid as in forward.

    A row's slopes sum to zero. With `out` rounded to 16 bits, delta is off, the same for all keys; by how much is what
    they sum to instead, and MEND takes it out again.
    """
    begin()
    b, part, head, start = place(LENGTH, PARTS, HEADS, BM)
    m = start + tl.arange(0, BM)
    token = HEADS * D
    batch = LENGTH * PARTS * token.to(tl.int64)
    k = first(k, b, part, head, KB, KN, D, ALIGN)
    v = first(v, b, part, head, VB, VN, D, ALIGN)
    queries = rows(first(q, b, part, head, QB, QN, D, ALIGN), m, LENGTH, PARTS, QN, D, ALIGN, True)
    grad = rows(first(grad_out, b, part, head, batch, token, D, ALIGN), m, LENGTH, PARTS, token, D, ALIGN, True)
    result = rows(first(out, b, part, head, batch, token, D, ALIGN), m, LENGTH, PARTS, token, D, ALIGN, True)
    products = tl.sum(grad.to(tl.float32) * result.to(tl.float32), axis=1)  # [BM]
    log = tl.load(vector(logsumexp, b, part, head, LENGTH, PARTS, HEADS) + m, mask=m < LENGTH, other=0.0)
    acc = tl.zeros([BM, D], tl.float32)
    mean = tl.zeros([BM, D], tl.float32)
    slope = tl.zeros([BM], tl.float32)
    whole = LENGTH // BN * BN
    for n0 in range(0, whole, BN):
        n = n0 + tl.arange(0, BN)
        acc, mean, slope = query_gradients(
            acc, mean, slope, queries, grad, log, products, k, v, n, LENGTH, PARTS, KN, VN,
            SCALE, D, ALIGN, PRECISION, MEND, False,
        )  # fmt: skip
    if whole < LENGTH:
        n = whole + tl.arange(0, BN)
        acc, mean, slope = query_gradients(
            acc, mean, slope, queries, grad, log, products, k, v, n, LENGTH, PARTS, KN, VN,
            SCALE, D, ALIGN, PRECISION, MEND, True,
        )  # fmt: skip
    if MEND:
        acc -= slope[:, None] * mean
        products += slope
    tl.store(vector(delta, b, part, head, LENGTH, PARTS, HEADS) + m, products, mask=m < LENGTH)
    grad_q = first(grad_q, b, part, head, batch, token, D, ALIGN)
    store_rows(grad_q, m, acc * (SCALE / LOG2_E), LENGTH, PARTS, token, D, ALIGN)


@triton.jit
def key_value_gradients(
    acc_k, acc_v, keys, values, q, grad_out, log, delta, m, LENGTH, PARTS, QN, token,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what one block of queries gives to the gradients of keys and values; beyond the length all is zero."""
    queries = rows(q, m, LENGTH, PARTS, QN, D, ALIGN, MASKED)
    grad = rows(grad_out, m, LENGTH, PARTS, token, D, ALIGN, MASKED)
    if MASKED:
        log = tl.load(log + m, mask=m < LENGTH, other=0.0)
        delta = tl.load(delta + m, mask=m < LENGTH, other=0.0)
    else:
        log = tl.load(log + m)
        delta = tl.load(delta + m)
    weights = tl.exp2(tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * SCALE - log[None, :])  # [BN, BM]
    acc_v = tl.dot(weights.to(grad.dtype), grad, acc_v, input_precision=PRECISION)
    slopes = weights * (tl.dot(values, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
    return tl.dot(slopes.to(queries.dtype), queries, acc_k, input_precision=PRECISION), acc_v


@kernel
def key_value_gradient_kernel(
    q, k, v, grad_out, logsumexp, delta, grad_k, grad_v, B, LENGTH, PARTS, HEADS, QB, QN, KB, KN, VB, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (samples x parts x blocks of BN rows x heads)."""
    begin()
    b, part, head, start = place(LENGTH, PARTS, HEADS, BN)
    n = start + tl.arange(0, BN)
    token = HEADS * D
    batch = LENGTH * PARTS * token.to(tl.int64)
    keys = rows(first(k, b, part, head, KB, KN, D, ALIGN), n, LENGTH, PARTS, KN, D, ALIGN, True)
    values = rows(first(v, b, part, head, VB, VN, D, ALIGN), n, LENGTH, PARTS, VN, D, ALIGN, True)
    q = first(q, b, part, head, QB, QN, D, ALIGN)
    grad_out = first(grad_out, b, part, head, batch, token, D, ALIGN)
    log = vector(logsumexp, b, part, head, LENGTH, PARTS, HEADS)
    delta = vector(delta, b, part, head, LENGTH, PARTS, HEADS)
    acc_k = tl.zeros([BN, D], tl.float32)
    acc_v = tl.zeros([BN, D], tl.float32)
    whole = LENGTH // BM * BM
    for m0 in range(0, whole, BM):
        m = m0 + tl.arange(0, BM)
        acc_k, acc_v = key_value_gradients(
            acc_k, acc_v, keys, values, q, grad_out, log, delta, m, LENGTH, PARTS, QN, token,
            SCALE, D, ALIGN, PRECISION, False,
        )  # fmt: skip
    if whole < LENGTH:
        m = whole + tl.arange(0, BM)
        acc_k, acc_v = key_value_gradients(
            acc_k, acc_v, keys, values, q, grad_out, log, delta, m, LENGTH, PARTS, QN, token,
            SCALE, D, ALIGN, PRECISION, True,
        )  # fmt: skip
    grad_k = first(grad_k, b, part, head, batch, token, D, ALIGN)
    store_rows(grad_k, n, acc_k * (SCALE / LOG2_E), LENGTH, PARTS, token, D, ALIGN)
    store_rows(first(grad_v, b, part, head, batch, token, D, ALIGN), n, acc_v, LENGTH, PARTS, token, D, ALIGN)
