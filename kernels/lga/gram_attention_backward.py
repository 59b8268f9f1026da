"""Backward of LGA's channel attention by Gram matrices; the algebra is in `fastattn.lga.reference`.

scratch   of each sample, the parameters' gradients: all weights, all biases
terms     of each sample and head, the shares' gradients: two rows, by the attention and by the residual
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.tuples import chosen
from .gram_attention_forward import (
    MOST,
    add_mixed,
    head_of_program,
    in_slice,
    kernel,
    ones,
    read_matrix,
    read_slice,
    read_vector,
    write_matrix,
    write_vector,
)


@triton.jit
def score_gradients(
    slope, saved, weight, bias, mixers, d_weight, d_bias, head, HEADS, P,
    HEAD: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the parameters of q and k, and the mixers for those of the slices, from that of q k^T."""
    size: tl.constexpr = (HEAD + 1) * HEAD
    part_q, part_k = head, HEADS + head
    gram = read_matrix(saved + HEAD * HEAD, HEAD, BD)
    sum_q = read_vector(saved + 2 * HEAD * HEAD, HEAD, BD)
    sum_k = read_vector(saved + 2 * HEAD * HEAD + HEAD, HEAD, BD)
    w_q = read_matrix(weight + part_q * HEAD * HEAD, HEAD, BD)
    b_q = read_vector(bias + part_q * HEAD, HEAD, BD)
    w_k = read_matrix(weight + part_k * HEAD * HEAD, HEAD, BD)
    b_k = read_vector(bias + part_k * HEAD, HEAD, BD)
    total_q = tl.sum(w_q * sum_q[None, :], axis=1) + P * b_q
    total_k = tl.sum(w_k * sum_k[None, :], axis=1) + P * b_k
    to_q = tl.sum(slope * b_k[None, :], axis=1)
    to_k = tl.sum(slope * b_q[:, None], axis=0)
    slope_q = tl.dot(slope, w_k, input_precision="ieee")
    slope_k = tl.dot(tl.trans(slope), w_q, input_precision="ieee")
    d_q = tl.dot(slope_q, tl.trans(gram), to_q[:, None] * sum_q[None, :], input_precision="ieee")
    d_k = tl.dot(slope_k, gram, to_k[:, None] * sum_k[None, :], input_precision="ieee")
    d_gram = tl.dot(tl.trans(w_q), slope_q, input_precision="ieee")
    write_matrix(d_weight + part_q * HEAD * HEAD, d_q, HEAD, BD)
    write_matrix(d_weight + part_k * HEAD * HEAD, d_k, HEAD, BD)
    write_vector(d_bias + part_q * HEAD, tl.sum(slope * total_k[None, :], axis=1), HEAD, BD)
    write_vector(d_bias + part_k * HEAD, tl.sum(slope * total_q[:, None], axis=0), HEAD, BD)
    write_matrix(mixers + part_q * size, d_gram, HEAD, BD)
    write_matrix(mixers + part_k * size, tl.trans(d_gram), HEAD, BD)
    write_vector(mixers + part_q * size + HEAD * HEAD, tl.sum(w_q * to_q[:, None], axis=0), HEAD, BD)
    write_vector(mixers + part_k * size + HEAD * HEAD, tl.sum(w_k * to_k[:, None], axis=0), HEAD, BD)


@kernel
def gram_attention_backward_kernel(
    features, weights, biases, shares, x, saved, grad_mixed,
    mixers,  # [B, KERNELS, 3 * HEADS, HEAD + 1, HEAD]
    scratch,  # [B, KERNELS * 3 * HEADS * (HEAD + 1) * HEAD]
    terms,  # [B, HEADS, 2, KERNELS]
    HEADS, P,
    KERNELS: tl.constexpr, HEAD: tl.constexpr, SCALE: tl.constexpr, PAPER: tl.constexpr, NHWC: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write a sample's gradients of the parameters, and the mixers for those of the features; grid as in forward."""
    begin()
    P = P // ALIGN * ALIGN
    b, k, head = head_of_program(HEADS, KERNELS)
    feature = chosen(features, k, KERNELS)
    r = tl.arange(0, BD)
    product = tl.zeros([BD, BD], tl.float32)
    sums_grad = tl.zeros([BD, BP], tl.float32)
    for p0 in range(0, P, BP):
        p = p0 + tl.arange(0, BP)
        grad = read_slice(grad_mixed, b, head, r[:, None], p[None, :], HEADS, P, HEAD, NHWC)  # [BD, BP]
        of_v = read_slice(feature, b, (2 * HEADS + head) // 3, r[None, :], p[:, None], HEADS, P, HEAD, NHWC)
        product = tl.dot(grad, of_v, product, input_precision=PRECISION)
        sums_grad += grad.to(tl.float32)
    sum_grad = tl.sum(sums_grad, axis=1)

    weight, bias = chosen(weights, k, KERNELS), chosen(biases, k, KERNELS)
    share = tl.load(shares + k)
    row = tl.program_id(0).to(tl.int64)
    saved += row * (2 * HEAD + 2) * HEAD
    if PAPER:
        attention = read_matrix(saved, HEAD, BD)
    else:
        attention = ones(HEAD, BD)
    parts = 3 * HEADS
    part_v = 2 * HEADS + head
    size: tl.constexpr = (HEAD + 1) * HEAD
    mixers += (b * KERNELS + k).to(tl.int64) * parts * size
    scratch += b.to(tl.int64) * KERNELS * parts * size
    d_weight = scratch + k * parts * HEAD * HEAD
    d_bias = scratch + (KERNELS * HEAD + k) * parts * HEAD
    w_v = read_matrix(weight + part_v * HEAD * HEAD, HEAD, BD)
    b_v = read_vector(bias + part_v * HEAD, HEAD, BD)

    # of the attention, but for the share, whose gradient is the sum of the products of both
    slope = tl.dot(product, tl.trans(w_v), sum_grad[:, None] * b_v[None, :], input_precision="ieee")
    along = tl.sum(slope * attention, axis=1)
    terms += (b * HEADS + head).to(tl.int64) * 2 * KERNELS
    tl.store(terms + k, tl.sum(along, axis=0))
    if k == 0:
        residual = tl.zeros([BD, BP], tl.float32)  # the same for all kernel sizes
        for p0 in range(0, P, BP):
            p = p0 + tl.arange(0, BP)
            grad = read_slice(grad_mixed, b, head, r[:, None], p[None, :], HEADS, P, HEAD, NHWC).to(tl.float32)
            beside = read_slice(x, b, head, r[:, None], p[None, :], HEADS, P, HEAD, NHWC).to(tl.float32)
            residual += grad * beside
        sizes = tl.arange(0, MOST)
        tl.store(terms + KERNELS + sizes, tl.sum(tl.sum(residual, axis=1), axis=0), mask=sizes < KERNELS)

    transposed = tl.trans(attention) * share
    write_matrix(mixers + part_v * size, tl.dot(tl.trans(w_v), transposed, input_precision="ieee"), HEAD, BD)
    write_vector(mixers + part_v * size + HEAD * HEAD, tl.zeros([BD], tl.float32), HEAD, BD)
    write_matrix(d_weight + part_v * HEAD * HEAD, tl.dot(transposed, product, input_precision="ieee"), HEAD, BD)
    write_vector(d_bias + part_v * HEAD, tl.sum(transposed * sum_grad[None, :], axis=1), HEAD, BD)

    if PAPER:
        slope = (slope - along[:, None]) * attention * (share * SCALE)  # of q k^T
        score_gradients(slope, saved, weight, bias, mixers, d_weight, d_bias, head, HEADS, P, HEAD, BD)
    else:
        for part in range(head, part_v, HEADS):
            write_matrix(d_weight + part * HEAD * HEAD, tl.zeros([BD, BD], tl.float32), HEAD, BD)
            write_vector(d_bias + part * HEAD, tl.zeros([BD], tl.float32), HEAD, BD)


@kernel
def gram_mix_backward_kernel(
    features, grad_mixed, mixers, grads, HEADS, P,
    KERNELS: tl.constexpr, HEAD: tl.constexpr, PAPER: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write the features' gradients; grid (samples x blocks of pixels x kernel sizes x slices)."""
    begin()
    P = P // ALIGN * ALIGN
    blocks = tl.cdiv(P, BP)
    rest, k, g = head_of_program(HEADS, KERNELS)
    b = rest // blocks
    p = rest % blocks * BP + tl.arange(0, BP)[None, :]
    r = tl.arange(0, BD)[:, None]
    feature = chosen(features, k, KERNELS)
    first = 3 * g
    if not PAPER:
        first = tl.maximum(first, 2 * HEADS)
    acc = tl.zeros([BD, BP], tl.float32)
    for part in range(first, 3 * g + 3):
        # the slice that this one met in the Gram matrix, or was mixed into
        source, other = feature, (part + HEADS) // 3
        if part >= HEADS:
            other = (part - HEADS) // 3
        if part >= 2 * HEADS:
            source, other = grad_mixed, part - 2 * HEADS
        value = read_slice(source, b, other, r, p, HEADS, P, HEAD, NHWC)
        row = (b * KERNELS + k).to(tl.int64) * 3 * HEADS + part
        acc = add_mixed(acc, mixers + row * (HEAD + 1) * HEAD, value, HEAD, BD, PRECISION)
    grad = chosen(grads, k, KERNELS)
    at, inside = in_slice(grad, b, g, r, p, HEADS, P, HEAD, NHWC)
    tl.store(at, acc, mask=inside)
