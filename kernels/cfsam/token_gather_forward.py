"""Forward of the token gather, and what backward shares with it: the places of tokens in levels.

Of a level, KIND 0 has neighbouring channels; the others are planes whose tokens start, and are read, at multiples of
2^(KIND - 1).
"""

import functools

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.resize import hat, input_shifts
from ..common.tuples import chosen

SIZES = ("B", "D", "N", "M", "PIXELS", "FORMATS")
kernel = functools.partial(triton.jit, do_not_specialize=SIZES, do_not_specialize_on_alignment=("weight", "bias"))


@triton.jit
def element(tokens, b, n0, t, d, N, D):
    """Pointers to channels d of the tokens n0 + t in sample b of a token matrix (B, N, D): [BT, BD]."""
    return tokens + (b.to(tl.int64) * N + n0) * D + (t[:, None] * D + d[None, :])


@triton.jit
def of_level(level, b, n0, t, d, start, P, D, KIND: tl.constexpr):
    """Pointers to the tokens n0 + t in sample b of a level that has P from start on, and which it has: [BT, BD]."""
    if KIND == 0:
        at = element(level, b, n0 - start, t, d, P, D)
    else:
        start = start // (1 << KIND - 1) * (1 << KIND - 1)
        P = P // (1 << KIND - 1) * (1 << KIND - 1)
        at = level + b.to(tl.int64) * D * P + (n0 - start) + (d.to(tl.int64)[None, :] * P + t[:, None])
    n = n0 + t
    return at, ((n >= start) & (n < start + P))[:, None] & (d < D)[None, :]


@triton.jit
def transfer(
    maps, pixels, kinds, tile, b, n0, used, d, D,
    LEVELS: tl.constexpr, KINDS: tl.constexpr, WRITE: tl.constexpr, RESIZE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Write a tile [BT, BD] to those of the tokens n0, n0 + 1, ... that levels have, or return it plus them.

    Resizing, only what is used is read.
    """
    start = 0
    for i in range(LEVELS):  # rolled, and with one body for all levels of a kind: fewer registers
        P = chosen(pixels, i, LEVELS)
        if (n0 < start + P) & (n0 + BT > start):
            level = chosen(maps, i, LEVELS)
            for k in tl.static_range(5):
                if (KINDS >> k) & 1:
                    if ((kinds >> 4 * i) & 15) == k:
                        at, inside = of_level(level, b, n0, tl.arange(0, BT), d, start, P, D, k)
                        if RESIZE and not WRITE:
                            inside &= used[:, None]
                        if WRITE:
                            tl.store(at, tile, mask=inside)
                        else:
                            tile += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        start += P
    return tile


@triton.jit
def read_tokens(
    maps, pixels, kinds, addend, b, n0, used, d, N, D,
    LEVELS: tl.constexpr, KINDS: tl.constexpr, ADD: tl.constexpr, RESIZE: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return those tokens that are used, of n0, n0 + 1, ..., with the addend: [BT, BD]."""
    tile = tl.zeros([BT, BD], tl.float32)
    tile = transfer(maps, pixels, kinds, tile, b, n0, used, d, D, LEVELS, KINDS, False, RESIZE, BT)
    if ADD:
        at = element(addend, b, n0, tl.arange(0, BT), d, N, D)
        tile += tl.load(at, mask=used[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    return tile


@kernel
def token_gather_kernel(
    maps,  # of LEVELS
    addend,  # [B, N, D]
    weight, bias,  # [D]
    tokens, normed,  # [B, M, D]
    statistics,  # [B, M, 2]
    D, N, M, PIXELS, FORMATS,
    LEVELS: tl.constexpr, KINDS: tl.constexpr, ALIGN: tl.constexpr, ADD: tl.constexpr, RESIZE: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of output tokens)."""
    begin()
    D = D // ALIGN * ALIGN
    blocks = tl.cdiv(M, BT)
    b, o0 = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BT
    t = tl.arange(0, BT)
    o = o0 + t
    d = tl.arange(0, BD)
    if RESIZE:
        tile = tl.zeros([BT, BD], tl.float32)
        first, end = input_shifts(o0, N, M, BT)
        for s in range(first, end):
            share = hat(o0, o0 + s, t, N, M)
            part = read_tokens(
                maps, PIXELS, FORMATS, addend, b, o0 + s, share > 0, d, N, D, LEVELS, KINDS, ADD, RESIZE, BT, BD
            )
            tile += share[:, None] * part
    else:
        tile = read_tokens(maps, PIXELS, FORMATS, addend, b, o0, o < M, d, N, D, LEVELS, KINDS, ADD, RESIZE, BT, BD)
    tile = tile.to(tokens.dtype.element_ty)
    inside = (o < M)[:, None] & (d < D)[None, :]
    tl.store(element(tokens, b, o0, t, d, M, D), tile, mask=inside)
    if NORM:
        tile = tile.to(tl.float32)
        mean = tl.sum(tile, axis=1) / D
        tile = tl.where((d < D)[None, :], tile - mean[:, None], 0.0)
        scale = tl.rsqrt(tl.sum(tile * tile, axis=1) / D + EPS)
        gamma = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
        beta = tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
        tile = tile * scale[:, None] * gamma[None, :] + beta[None, :]
        tl.store(element(normed, b, o0, t, d, M, D), tile, mask=inside)
        at = statistics + (b.to(tl.int64) * M + o) * 2
        tl.store(at, mean, mask=o < M)
        tl.store(at + 1, scale, mask=o < M)
