"""Forward of attention within parts, and what backward shares with it: where a part's tokens and vectors lie.

Token n = j * PARTS + p of (B, N, HEADS * D) is the j-th of part p: a part's tokens are rows, PARTS * TOKEN elements
apart. Scores are in base 2: their scale holds log2(e), and `logsumexp` and `delta` = sum(grad_out * out) are float32
(B, PARTS, HEADS, LENGTH), with LENGTH = N / PARTS.
"""

import functools

import triton
import triton.language as tl

from ..common.chain import begin

SIZES = ("LENGTH", "PARTS", "HEADS", "QB", "QN", "KB", "KN", "VB", "VN", "B")
LOG2_E = tl.constexpr(1.4426950408889634)
kernel = functools.partial(triton.jit, do_not_specialize=SIZES)


@triton.jit
def place(LENGTH, PARTS, HEADS, BLOCK: tl.constexpr):
    """Sample, part, head and first row of a program; the heads of the same tokens are neighbours."""
    blocks = tl.cdiv(LENGTH, BLOCK)
    head = tl.program_id(0) % HEADS
    rest = tl.program_id(0) // HEADS
    part = rest // blocks % PARTS
    return rest // blocks // PARTS, part, head, rest % blocks * BLOCK


@triton.jit
def first(tensor, b, part, head, BATCH, TOKEN, D: tl.constexpr, ALIGN: tl.constexpr):
    """Pointer to the first token of a part, in one sample and head."""
    return tensor + b.to(tl.int64) * (BATCH // ALIGN * ALIGN) + part.to(tl.int64) * (TOKEN // ALIGN * ALIGN) + head * D


@triton.jit
def rows(pointer, j, LENGTH, PARTS, TOKEN, D: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr):
    """The tokens j of a part, [BLOCK, D], zero beyond its length."""
    step = PARTS.to(tl.int64) * (TOKEN // ALIGN * ALIGN)
    pointers = pointer + j[:, None] * step + tl.arange(0, D)[None, :]
    if MASKED:
        return tl.load(pointers, mask=(j < LENGTH)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def store_rows(pointer, j, value, LENGTH, PARTS, TOKEN, D: tl.constexpr, ALIGN: tl.constexpr):
    """Write the tokens j of a part."""
    step = PARTS.to(tl.int64) * (TOKEN // ALIGN * ALIGN)
    pointers = pointer + j[:, None] * step + tl.arange(0, D)[None, :]
    tl.store(pointers, value.to(pointer.dtype.element_ty), mask=(j < LENGTH)[:, None])


@triton.jit
def vector(tensor, b, part, head, LENGTH, PARTS, HEADS):
    """Pointer to the floats of one sample, part and head."""
    return tensor + ((b * PARTS + part).to(tl.int64) * HEADS + head) * LENGTH


@triton.jit
def attend(
    acc, total, most, q, k, v, n, LENGTH, PARTS, KN, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the running sums, totals and maxima of the rows."""
    keys = rows(k, n, LENGTH, PARTS, KN, D, ALIGN, MASKED)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)  # [BM, BN], scaled below: one fused operation each
    if MASKED:
        scores = tl.where((n < LENGTH)[None, :], scores, float("-inf"))
    above = tl.maximum(most, tl.max(scores, axis=1) * SCALE)
    weights = tl.exp2(scores * SCALE - above[:, None])
    shrink = tl.exp2(most - above)
    values = rows(v, n, LENGTH, PARTS, VN, D, ALIGN, MASKED)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total * shrink + tl.sum(weights, axis=1), above


@kernel
def attention_forward_kernel(
    q, k, v, out, logsumexp, B, LENGTH, PARTS, HEADS, QB, QN, KB, KN, VB, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (samples x parts x blocks of BM rows x heads)."""
    begin()
    b, part, head, start = place(LENGTH, PARTS, HEADS, BM)
    m = start + tl.arange(0, BM)
    k = first(k, b, part, head, KB, KN, D, ALIGN)
    v = first(v, b, part, head, VB, VN, D, ALIGN)
    queries = rows(first(q, b, part, head, QB, QN, D, ALIGN), m, LENGTH, PARTS, QN, D, ALIGN, True)
    acc = tl.zeros([BM, D], tl.float32)
    total = tl.zeros([BM], tl.float32)
    most = tl.full([BM], float("-inf"), tl.float32)
    whole = LENGTH // BN * BN
    for n0 in range(0, whole, BN):
        n = n0 + tl.arange(0, BN)
        acc, total, most = attend(
            acc, total, most, queries, k, v, n, LENGTH, PARTS, KN, VN, SCALE, D, ALIGN, PRECISION, False
        )
    if whole < LENGTH:
        n = whole + tl.arange(0, BN)
        acc, total, most = attend(
            acc, total, most, queries, k, v, n, LENGTH, PARTS, KN, VN, SCALE, D, ALIGN, PRECISION, True
        )
    token = HEADS * D
    out = first(out, b, part, head, LENGTH * PARTS * token.to(tl.int64), token, D, ALIGN)
    store_rows(out, m, acc / total[:, None], LENGTH, PARTS, token, D, ALIGN)
    tl.store(vector(logsumexp, b, part, head, LENGTH, PARTS, HEADS) + m, most + tl.log2(total), mask=m < LENGTH)
