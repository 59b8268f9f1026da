"""Forward of LGA's channel attention by Gram matrices, and what backward shares with it: slices, matrices and vectors.

A map (B, HEADS * HEAD, P pixels) has HEADS slices of HEAD channels. Of the 3 * HEADS parts, q, k and v of each head,
part o = role * HEADS + head has row o of the weights (3 * HEADS, HEAD, HEAD) and reads slice o // 3: each slice serves
three parts. Matrices and vectors have HEAD rows; in tiles they are padded with zeros to BD.

    saved     of each sample, kernel size and head: attention, Gram matrix, the sums of both slices over the pixels
    mixers    of each sample, kernel size and head, or part: a matrix and a vector, to map one slice onto another
"""

import functools

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.tuples import chosen

MOST = tl.constexpr(8)  # kernel sizes that a launch takes
kernel = functools.partial(
    triton.jit, do_not_specialize=("HEADS", "P"), do_not_specialize_on_alignment=("weights", "biases", "shares")
)


@triton.jit
def in_slice(tensor, b, g, r, p, HEADS, P, HEAD: tl.constexpr, NHWC: tl.constexpr):
    """Pointers to the channels r of slice g at pixels p, in sample b, and which exist; r and p broadcast."""
    c = g * HEAD + r
    D = HEADS * HEAD
    at = tensor + b.to(tl.int64) * P * D
    if NHWC:
        at += p * D + c
    else:
        at += c * P + p
    return at, (r < HEAD) & (p < P)


@triton.jit
def read_slice(tensor, b, g, r, p, HEADS, P, HEAD: tl.constexpr, NHWC: tl.constexpr):
    """The channels r of slice g at pixels p, in sample b, zero where there are none."""
    at, inside = in_slice(tensor, b, g, r, p, HEADS, P, HEAD, NHWC)
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def in_matrix(tensor, HEAD: tl.constexpr, BD: tl.constexpr):
    """Pointers to a matrix, and which are inside: [BD, BD]."""
    r = tl.arange(0, BD)
    return tensor + (r[:, None] * HEAD + r[None, :]), (r < HEAD)[:, None] & (r < HEAD)[None, :]


@triton.jit
def read_matrix(tensor, HEAD: tl.constexpr, BD: tl.constexpr):
    at, inside = in_matrix(tensor, HEAD, BD)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def write_matrix(tensor, value, HEAD: tl.constexpr, BD: tl.constexpr):
    at, inside = in_matrix(tensor, HEAD, BD)
    tl.store(at, value, mask=inside)


@triton.jit
def read_vector(tensor, HEAD: tl.constexpr, BD: tl.constexpr):
    r = tl.arange(0, BD)
    return tl.load(tensor + r, mask=r < HEAD, other=0.0).to(tl.float32)


@triton.jit
def write_vector(tensor, value, HEAD: tl.constexpr, BD: tl.constexpr):
    r = tl.arange(0, BD)
    tl.store(tensor + r, value, mask=r < HEAD)


@triton.jit
def ones(HEAD: tl.constexpr, BD: tl.constexpr):
    """The matrix that contracts as the released code does: [BD, BD]."""
    inside = tl.arange(0, BD) < HEAD
    return tl.where(inside[:, None] & inside[None, :], 1.0, 0.0)


@triton.jit
def add_mixed(acc, mixer, source, HEAD: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr):
    """Add the matrix of a mixer times the source, and its vector at every pixel: [BD, BP]."""
    matrix = read_matrix(mixer, HEAD, BD).to(source.dtype)
    acc += read_vector(mixer + HEAD * HEAD, HEAD, BD)[:, None]
    return tl.dot(matrix, source, acc, input_precision=PRECISION)


@triton.jit
def head_of_program(HEADS, KERNELS: tl.constexpr):
    """Sample, kernel size and head of a program; the heads of one map are neighbours."""
    rest = tl.program_id(0) // HEADS
    return rest // KERNELS, rest % KERNELS, tl.program_id(0) % HEADS


@kernel
def gram_attention_kernel(
    features,  # KERNELS of [B, HEADS * HEAD, P]
    weights,  # of [3 * HEADS, HEAD, HEAD]
    biases,  # of [3 * HEADS, HEAD]
    shares,  # [KERNELS]
    saved,  # [B, KERNELS, HEADS, 2 * HEAD + 2, HEAD]
    mixers,  # [B, KERNELS, HEADS, HEAD + 1, HEAD]
    HEADS, P,
    KERNELS: tl.constexpr, HEAD: tl.constexpr, SCALE: tl.constexpr, PAPER: tl.constexpr, NHWC: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Attend by the Gram matrix of two slices; grid (samples x kernel sizes x heads)."""
    begin()
    P = P // ALIGN * ALIGN
    b, k, head = head_of_program(HEADS, KERNELS)
    weight, bias = chosen(weights, k, KERNELS), chosen(biases, k, KERNELS)
    row = tl.program_id(0).to(tl.int64)
    if PAPER:
        feature = chosen(features, k, KERNELS)
        r = tl.arange(0, BD)
        gram = tl.zeros([BD, BD], tl.float32)
        sums_q = tl.zeros([BD, BP], tl.float32)
        sums_k = tl.zeros([BP, BD], tl.float32)
        for p0 in range(0, P, BP):
            p = p0 + tl.arange(0, BP)
            of_q = read_slice(feature, b, head // 3, r[:, None], p[None, :], HEADS, P, HEAD, NHWC)  # [BD, BP]
            of_k = read_slice(feature, b, (HEADS + head) // 3, r[None, :], p[:, None], HEADS, P, HEAD, NHWC)
            gram = tl.dot(of_q, of_k, gram, input_precision=PRECISION)
            sums_q += of_q.to(tl.float32)
            sums_k += of_k.to(tl.float32)
        sum_q = tl.sum(sums_q, axis=1)
        sum_k = tl.sum(sums_k, axis=0)
        w_q = read_matrix(weight + head * HEAD * HEAD, HEAD, BD)
        w_k = read_matrix(weight + (HEADS + head) * HEAD * HEAD, HEAD, BD)
        b_q = read_vector(bias + head * HEAD, HEAD, BD)
        b_k = read_vector(bias + (HEADS + head) * HEAD, HEAD, BD)
        # (W_q G + b_q s_k^T) W_k^T + (W_q s_q + P b_q) b_k^T
        scores = tl.dot(w_q, gram, b_q[:, None] * sum_k[None, :], input_precision="ieee")
        total_q = tl.sum(w_q * sum_q[None, :], axis=1) + P * b_q
        scores = tl.dot(scores, tl.trans(w_k), total_q[:, None] * b_k[None, :], input_precision="ieee") * SCALE
        scores = tl.where((r < HEAD)[None, :], scores, float("-inf"))
        attention = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        attention /= tl.sum(attention, axis=1)[:, None]
        saved += row * (2 * HEAD + 2) * HEAD
        write_matrix(saved, attention, HEAD, BD)
        write_matrix(saved + HEAD * HEAD, gram, HEAD, BD)
        write_vector(saved + 2 * HEAD * HEAD, sum_q, HEAD, BD)
        write_vector(saved + 2 * HEAD * HEAD + HEAD, sum_k, HEAD, BD)
    else:
        attention = ones(HEAD, BD)
    w_v = read_matrix(weight + (2 * HEADS + head) * HEAD * HEAD, HEAD, BD)
    b_v = read_vector(bias + (2 * HEADS + head) * HEAD, HEAD, BD)
    share = tl.load(shares + k)
    mixers += row * (HEAD + 1) * HEAD
    write_matrix(mixers, tl.dot(attention, w_v, input_precision="ieee") * share, HEAD, BD)
    write_vector(mixers + HEAD * HEAD, tl.sum(attention * b_v[None, :], axis=1) * share, HEAD, BD)


@kernel
def gram_mix_kernel(
    features, shares, x, mixers, mixed, HEADS, P,
    KERNELS: tl.constexpr, HEAD: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Mix the slices that serve as v, and x; grid (samples x blocks of pixels x these slices)."""
    begin()
    P = P // ALIGN * ALIGN
    blocks = tl.cdiv(P, BP)
    first = 2 * HEADS // 3
    g = first + tl.program_id(0) % (HEADS - first)
    rest = tl.program_id(0) // (HEADS - first)
    b = rest // blocks
    p = rest % blocks * BP + tl.arange(0, BP)[None, :]
    r = tl.arange(0, BD)[:, None]
    sizes = tl.arange(0, MOST)
    total = tl.sum(tl.load(shares + sizes, mask=sizes < KERNELS, other=0.0), axis=0)
    for head in range(tl.maximum(3 * g - 2 * HEADS, 0), 3 * g + 3 - 2 * HEADS):
        acc = read_slice(x, b, head, r, p, HEADS, P, HEAD, NHWC).to(tl.float32) * total
        for k in range(KERNELS):
            feature = chosen(features, k, KERNELS)
            source = read_slice(feature, b, g, r, p, HEADS, P, HEAD, NHWC)
            row = (b * KERNELS + k).to(tl.int64) * HEADS + head
            acc = add_mixed(acc, mixers + row * (HEAD + 1) * HEAD, source, HEAD, BD, PRECISION)
        at, inside = in_slice(mixed, b, head, r, p, HEADS, P, HEAD, NHWC)
        tl.store(at, acc, mask=inside)
