"""Forward of conceptual attention, in the flash manner: scores are formed where they are needed, and softmaxes are
online. The algebra is in `fastattn.interaction.reference`.

    gather    means of the tokens by the softmax over N, in parts: of each, sums, maxima and totals
    merge     of the parts, and the logarithms of the softmax over N
    spread    out, and the logarithms of the softmax over K
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import sample
from ..common.tuples import zeros
from .products import LOG2_E, kernel, mixed, part, place, products, write


@triton.jit
def attend(
    accs, total, most, scores, right, r, rights, C, like, COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the tiles, totals and maxima of an online softmax with more scores, in base 2, of the rows r of a matrix,
    which the tiles mix."""
    above = tl.maximum(most, tl.max(scores, axis=1))
    weights = tl.exp2(scores - above[:, None])
    shrink = tl.exp2(most - above)
    shrunk = ()
    for j in tl.static_range(COUNT):
        shrunk += (accs[j] * shrink[:, None],)
    accs = mixed(shrunk, weights, right, r, rights, C, like, COUNT, CHUNK, EVEN, PRECISION)
    return accs, total * shrink + tl.sum(weights, axis=1), above


@kernel
def gather_kernel(
    x, score,
    sums,  # [B * PARTS, K, C]
    totals,  # [B * PARTS, 2, K]: maximum, total
    N, C, K, PARTS, LENGTH,
    COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (samples x parts x blocks of BK concepts)."""
    begin()
    C = C // ALIGN * ALIGN
    b, row, k, start, end = part(N, K, PARTS, LENGTH, BK)
    x = sample(x, b, N * C)
    accs = zeros(COUNT, BK, CHUNK)
    total = tl.zeros([BK], tl.float32)
    most = tl.full([BK], float("-inf"), tl.float32)
    for n0 in range(start, end, BN):
        n = n0 + tl.arange(0, BN)
        scores = products(score, k, K, x, n, end, C, score, BK, BN, CHUNK, EVEN, PRECISION)
        scores = tl.where((n < end)[None, :], scores * LOG2_E, float("-inf"))
        accs, total, most = attend(
            accs, total, most, scores, x, n, end, C, score, COUNT, CHUNK, EVEN, PRECISION
        )  # fmt: skip
    write(sample(sums, row, K * C), k, K, accs, C, COUNT, CHUNK, EVEN)
    totals = sample(totals, row, 2 * K)
    tl.store(totals + k, most, mask=k < K)
    tl.store(totals + K + k, total, mask=k < K)


@kernel
def merge_kernel(
    sums, totals,
    means,  # [B, K, C]
    logs,  # [B, K]
    C, K, PARTS,
    CHUNK: tl.constexpr, ALIGN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of BK concepts, chunks)."""
    begin()
    C = C // ALIGN * ALIGN
    blocks = tl.cdiv(K, BK)
    b = tl.program_id(0) // blocks
    k = tl.program_id(0) % blocks * BK + tl.arange(0, BK)
    c = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    totals = sample(totals, b, PARTS * 2 * K)
    most = tl.full([BK], float("-inf"), tl.float32)
    for i in range(PARTS):
        most = tl.maximum(most, tl.load(totals + i * 2 * K + k, mask=k < K, other=0.0))
    total = tl.zeros([BK], tl.float32)
    acc = tl.zeros([BK, CHUNK], tl.float32)
    at = k.to(tl.int64)[:, None] * C + c[None, :]
    inside = (k < K)[:, None] & (c < C)[None, :]
    for i in range(PARTS):
        share = tl.exp2(tl.load(totals + i * 2 * K + k, mask=k < K, other=0.0) - most)
        total += share * tl.load(totals + (i * 2 + 1) * K + k, mask=k < K, other=1.0)
        acc += share[:, None] * tl.load(sample(sums, b * PARTS + i, K * C) + at, mask=inside, other=0.0)
    tl.store(sample(means, b, K * C) + at, acc / total[:, None], mask=inside)
    if tl.program_id(1) == 0:
        tl.store(sample(logs, b, K) + k, most + tl.log2(total), mask=k < K)


@kernel
def spread_kernel(
    x, score,
    values,  # [B, K, C]
    bias, out,
    logs,  # [B, N]
    N, C, K,
    COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    SAVE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of BM tokens)."""
    begin()
    C = C // ALIGN * ALIGN
    blocks = tl.cdiv(N, BM)
    b, n = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    x, values = sample(x, b, N * C), sample(values, b, K * C)
    accs = zeros(COUNT, BM, CHUNK)
    total = tl.zeros([BM], tl.float32)
    most = tl.full([BM], float("-inf"), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        scores = products(x, n, N, score, k, K, C, score, BM, BK, CHUNK, EVEN, PRECISION)
        scores = tl.where((k < K)[None, :], scores * LOG2_E, float("-inf"))
        accs, total, most = attend(
            accs, total, most, scores, values, k, K, C, score, COUNT, CHUNK, EVEN, PRECISION
        )  # fmt: skip
    out = sample(out, b, N * C)
    for j in tl.static_range(COUNT):
        at, inside = place(x, n, N, C, j, CHUNK, EVEN)
        own = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        c = j * CHUNK + tl.arange(0, CHUNK)
        beta = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
        at, inside = place(out, n, N, C, j, CHUNK, EVEN)
        tl.store(at, own + (accs[j] / total[:, None] + beta[None, :]), mask=inside)
    if SAVE:
        tl.store(sample(logs, b, N) + n, most + tl.log2(total), mask=n < N)
