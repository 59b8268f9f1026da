"""What the kernels of conceptual attention share: rows of matrices in chunks of channels, and their products.

Rows of tokens and concepts are COUNT tiles of CHUNK channels, and a part is LENGTH tokens of a sample. Scores are in
base 2, and so are the logarithms, float32 (B, K) and (B, N). Tokens (B, N, C) may be wider than the weights, in whose
dtype products are formed.
"""

import functools

import triton
import triton.language as tl

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
def part(N, K, PARTS, LENGTH, BK: tl.constexpr):
    """Sample, part, concepts and the tokens' first and last but one of a program; those of the same tokens are
    neighbours."""
    blocks = tl.cdiv(K, BK)
    k = tl.program_id(0) % blocks * BK + tl.arange(0, BK)
    rest = tl.program_id(0) // blocks
    b, split = rest // PARTS, rest % PARTS
    return b, rest, k, split * LENGTH, tl.minimum(split * LENGTH + LENGTH, N)
