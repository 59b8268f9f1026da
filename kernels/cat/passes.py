"""The kernels of conceptual attention, in the flash manner: scores are formed where they are needed, and softmaxes are
online. The algebra is in `fastattn.interaction.reference`.

    gather           means of the tokens by the softmax over N, in parts: of each, sums, maxima and totals
    merge            of the parts, and the logarithms of the softmax over N
    spread           out, and the logarithms of the softmax over K
    value gradient   of what concepts give back, and of out's bias, in parts
    token gradient   of the tokens
    score gradient   of the weight of the scores, in parts

A part is LENGTH tokens of a sample. Rows of tokens and concepts are COUNT tiles of CHUNK channels. Scores are in base
2, and so are the logarithms, float32 (B, K) and (B, N). Tokens (B, N, C) may be wider than the weights, in whose dtype
products are formed.
"""

import functools

import triton
import triton.language as tl

from ..common.maps import sample
from ..common.tuples import zeros

LOG2_E = tl.constexpr(1.4426950408889634)
kernel = functools.partial(triton.jit, do_not_specialize=("N", "C", "K", "PARTS", "LENGTH"))


@triton.jit
def place(pointer, n, rows, C, j, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """Pointers to chunk j of the rows n of a matrix [rows, C], and which there are: [len(n), CHUNK]."""
    c = j * CHUNK + tl.arange(0, CHUNK)
    inside = (n < rows)[:, None]
    if not EVEN:
        inside = inside & (c < C)[None, :]
    return pointer + (n.to(tl.int64)[:, None] * C + c[None, :]), inside


@triton.jit
def write(pointer, n, rows, tiles, C, COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """Write the rows n of a matrix."""
    for j in tl.static_range(COUNT):
        at, inside = place(pointer, n, rows, C, j, CHUNK, EVEN)
        tl.store(at, tiles[j], mask=inside)


@triton.jit
def chunk(pointer, n, rows, j, C, like, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """Return chunk j of the rows n of a matrix, in the dtype of another one, zeros beyond: [len(n), CHUNK]."""
    at, inside = place(pointer, n, rows, C, j, CHUNK, EVEN)
    return tl.load(at, mask=inside, other=0.0).to(like.dtype.element_ty)


@triton.jit
def products(
    left, l, lefts, right, r, rights, C, like, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the products of the rows l and r of two matrices, which have so many: [ROWS, COLUMNS]."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for j in range(tl.cdiv(C, CHUNK)):
        a = chunk(left, l, lefts, j, C, like, CHUNK, EVEN)
        b = chunk(right, r, rights, j, C, like, CHUNK, EVEN)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def mixed(
    accs, weights, right, r, rights, C, like, COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the tiles plus the rows r of a matrix, mixed by weights."""
    weights = weights.to(like.dtype.element_ty)
    more = ()
    for j in tl.static_range(COUNT):
        rows = chunk(right, r, rights, j, C, like, CHUNK, EVEN)
        more += (tl.dot(weights, rows, accs[j], input_precision=PRECISION),)
    return more


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


@triton.jit
def attention(scores, log, inside):
    """Return a softmax at scores; its logarithms and `inside` broadcast."""
    return tl.where(inside, tl.exp2(scores * LOG2_E - log), 0.0)


@triton.jit
def part(N, K, PARTS, LENGTH, BK: tl.constexpr):
    """Sample, part, concepts and the tokens' first and last but one of a program; those of the same tokens are
    neighbours."""
    blocks = tl.cdiv(K, BK)
    k = tl.program_id(0) % blocks * BK + tl.arange(0, BK)
    rest = tl.program_id(0) // blocks
    b, split = rest // PARTS, rest % PARTS
    return b, rest, k, split * LENGTH, tl.minimum(split * LENGTH + LENGTH, N)


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


@kernel
def value_gradient_kernel(
    x, grad, score,
    logs,  # [B, N]
    sums,  # [B * PARTS, K, C]
    grad_sums,  # [B * PARTS, C]
    N, C, K, PARTS, LENGTH,
    COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (samples x parts x blocks of BK concepts)."""
    C = C // ALIGN * ALIGN
    b, row, k, start, end = part(N, K, PARTS, LENGTH, BK)
    x, grad, logs = sample(x, b, N * C), sample(grad, b, N * C), sample(logs, b, N)
    accs = zeros(COUNT, BK, CHUNK)
    given = ()
    for _ in tl.static_range(COUNT):
        given += (tl.zeros([CHUNK], tl.float32),)
    for n0 in range(start, end, BN):
        n = n0 + tl.arange(0, BN)
        scores = products(score, k, K, x, n, end, C, score, BK, BN, CHUNK, EVEN, PRECISION)
        log = tl.load(logs + n, mask=n < end, other=0.0)[None, :]
        weights = attention(scores, log, (k < K)[:, None] & (n < end)[None, :])
        accs = mixed(accs, weights, grad, n, end, C, score, COUNT, CHUNK, EVEN, PRECISION)
        more = ()
        for j in tl.static_range(COUNT):
            more += (given[j] + tl.sum(chunk(grad, n, end, j, C, sums, CHUNK, EVEN), axis=0),)
        given = more
    write(sample(sums, row, K * C), k, K, accs, C, COUNT, CHUNK, EVEN)
    if tl.program_id(0) % tl.cdiv(K, BK) == 0:
        for j in tl.static_range(COUNT):
            c = j * CHUNK + tl.arange(0, CHUNK)
            tl.store(sample(grad_sums, row, C) + c, given[j], mask=c < C)


@kernel
def token_gradient_kernel(
    x, grad, score, values,
    d_means,  # [B, K, C]
    logs_n, logs_k,
    e,  # [B, K]: means times their gradient, summed over C
    deltas,  # [B, N]: of the softmax over K
    grad_x,
    N, C, K,
    COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    ONE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of BM tokens); ONE block has all concepts."""
    C = C // ALIGN * ALIGN
    blocks = tl.cdiv(N, BM)
    b, n = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    x, grad, grad_x = sample(x, b, N * C), sample(grad, b, N * C), sample(grad_x, b, N * C)
    values, d_means = sample(values, b, K * C), sample(d_means, b, K * C)
    logs_k, e = sample(logs_k, b, K), sample(e, b, K)
    log_n = tl.load(sample(logs_n, b, N) + n, mask=n < N, other=0.0)[:, None]
    delta = tl.zeros([BM], tl.float32)
    if not ONE:
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            scores = products(x, n, N, score, k, K, C, score, BM, BK, CHUNK, EVEN, PRECISION)
            back = attention(scores, log_n, (n < N)[:, None] & (k < K)[None, :])
            d_back = products(grad, n, N, values, k, K, C, score, BM, BK, CHUNK, EVEN, PRECISION)
            delta += tl.sum(back * d_back, axis=1)
    accs = zeros(COUNT, BM, CHUNK)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        inside = (n < N)[:, None] & (k < K)[None, :]
        scores = products(x, n, N, score, k, K, C, score, BM, BK, CHUNK, EVEN, PRECISION)
        d_back = products(grad, n, N, values, k, K, C, score, BM, BK, CHUNK, EVEN, PRECISION)
        d_forth = products(x, n, N, d_means, k, K, C, score, BM, BK, CHUNK, EVEN, PRECISION)
        forth = attention(scores, tl.load(logs_k + k, mask=k < K, other=0.0)[None, :], inside)
        accs = mixed(accs, forth, d_means, k, K, C, score, COUNT, CHUNK, EVEN, PRECISION)
        d_scores = forth * (d_forth - tl.load(e + k, mask=k < K, other=0.0)[None, :])
        back = attention(scores, log_n, inside)
        if ONE:
            delta = tl.sum(back * d_back, axis=1)
        d_scores += back * (d_back - delta[:, None])
        accs = mixed(accs, d_scores, score, k, K, C, score, COUNT, CHUNK, EVEN, PRECISION)
    for j in tl.static_range(COUNT):
        at, inside = place(grad, n, N, C, j, CHUNK, EVEN)
        own = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        at, inside = place(grad_x, n, N, C, j, CHUNK, EVEN)
        tl.store(at, own + accs[j], mask=inside)
    tl.store(sample(deltas, b, N) + n, delta, mask=n < N)


@kernel
def score_gradient_kernel(
    x, grad, score, values, d_means, logs_n, logs_k, e, deltas,
    sums,  # [B * PARTS, K, C]
    N, C, K, PARTS, LENGTH,
    COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (samples x parts x blocks of BK concepts)."""
    C = C // ALIGN * ALIGN
    b, row, k, start, end = part(N, K, PARTS, LENGTH, BK)
    x, grad = sample(x, b, N * C), sample(grad, b, N * C)
    values, d_means = sample(values, b, K * C), sample(d_means, b, K * C)
    logs_n, deltas = sample(logs_n, b, N), sample(deltas, b, N)
    log_k = tl.load(sample(logs_k, b, K) + k, mask=k < K, other=0.0)[:, None]
    e_k = tl.load(sample(e, b, K) + k, mask=k < K, other=0.0)[:, None]
    accs = zeros(COUNT, BK, CHUNK)
    for n0 in range(start, end, BN):
        n = n0 + tl.arange(0, BN)
        inside = (k < K)[:, None] & (n < end)[None, :]
        scores = products(score, k, K, x, n, end, C, score, BK, BN, CHUNK, EVEN, PRECISION)
        d_back = products(values, k, K, grad, n, end, C, score, BK, BN, CHUNK, EVEN, PRECISION)
        d_forth = products(d_means, k, K, x, n, end, C, score, BK, BN, CHUNK, EVEN, PRECISION)
        back = attention(scores, tl.load(logs_n + n, mask=n < end, other=0.0)[None, :], inside)
        d_scores = back * (d_back - tl.load(deltas + n, mask=n < end, other=0.0)[None, :])
        d_scores += attention(scores, log_k, inside) * (d_forth - e_k)
        accs = mixed(accs, d_scores, x, n, end, C, score, COUNT, CHUNK, EVEN, PRECISION)
    write(sample(sums, row, K * C), k, K, accs, C, COUNT, CHUNK, EVEN)
