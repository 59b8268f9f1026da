"""Backward of conceptual attention: scores are formed again, and the softmaxes follow from forward's logarithms.

value gradient   of what concepts give back, and of out's bias, in parts
token gradient   of the tokens
score gradient   of the weight of the scores, in parts
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import sample
from ..common.tuples import zeros
from .products import LOG2_E, chunk, kernel, mixed, part, place, products, write


@triton.jit
def attention(scores, log, inside):
    """Return a softmax at scores; its logarithms and `inside` broadcast."""
    return tl.where(inside, tl.exp2(scores * LOG2_E - log), 0.0)


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
    begin()
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
    e,  # [B, K]: of the means, along them
    deltas,  # [B, N]: of the softmax over K
    grad_x,
    N, C, K,
    COUNT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    ONE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of BM tokens); ONE block has all concepts."""
    begin()
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
    begin()
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
