"""Token gather: flatten + concatenate + add + resize + LayerNorm in one pass, and its backward in another.

A level is a map (B, D, H, W), contiguous or channels_last, or a token matrix (B, N, D), which lies like the latter.
Levels behind each other are N tokens of D channels, which are resized to M.
"""

import functools
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import batch_sum, tiles, tuning
from ..common.launch import Grid, Launch, aligned, padded, processors
from ..common.resize import hat, input_shifts, output_shifts
from ..common.run import run
from ..common.tuples import chosen

LEVELS = 8  # that one launch takes
MAPS = tuple(f"map_{i}" for i in range(LEVELS))
Levels = tuple[tuple[int, bool], ...]  # of each: pixels, whether channels are neighbours in memory
SIZES = ("B", "D", "N", "M", *(f"P{i}" for i in range(LEVELS)), "FORMATS")
PROGRAMS = 2  # of the backward pass per multiprocessor, each with a row of parameter gradients
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
    map_0, map_1, map_2, map_3, map_4, map_5, map_6, map_7,
    addend,  # [B, N, D]
    weight, bias,  # [D]
    tokens, normed,  # [B, M, D]
    statistics,  # [B, M, 2]
    D, N, M, P0, P1, P2, P3, P4, P5, P6, P7, FORMATS,
    LEVELS: tl.constexpr, KINDS: tl.constexpr, ALIGN: tl.constexpr, ADD: tl.constexpr, RESIZE: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of output tokens)."""
    maps = (map_0, map_1, map_2, map_3, map_4, map_5, map_6, map_7)
    pixels = (P0, P1, P2, P3, P4, P5, P6, P7)
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
                maps, pixels, FORMATS, addend, b, o0 + s, share > 0, d, N, D, LEVELS, KINDS, ADD, RESIZE, BT, BD
            )
            tile += share[:, None] * part
    else:
        tile = read_tokens(maps, pixels, FORMATS, addend, b, o0, o < M, d, N, D, LEVELS, KINDS, ADD, RESIZE, BT, BD)
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


@triton.jit
def token_gradient(
    grad_tokens, grad_normed, tokens, statistics, gamma, b, o0, share, d, M, D,
    GRAD_TOKENS: tl.constexpr, NORM: tl.constexpr, RESIZE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return shares of the gradients of output tokens o0 + t, [BT, BD], and their sums for weight and bias, [BD]."""
    t = tl.arange(0, BT)
    inside = (share > 0)[:, None] & (d < D)[None, :]
    grad = tl.zeros([BT, BD], tl.float32)
    d_weight = tl.zeros([BD], tl.float32)
    d_bias = tl.zeros([BD], tl.float32)
    if NORM:
        at = statistics + (b.to(tl.int64) * M + o0) * 2 + t * 2
        mean = tl.load(at, mask=share > 0, other=0.0)[:, None]
        scale = tl.load(at + 1, mask=share > 0, other=0.0)[:, None]
        x = tl.load(element(tokens, b, o0, t, d, M, D), mask=inside, other=0.0).to(tl.float32)
        x = (x - mean) * scale
        g = tl.load(element(grad_normed, b, o0, t, d, M, D), mask=inside, other=0.0).to(tl.float32)
        if RESIZE:
            g *= share[:, None]
        d_weight = tl.sum(g * x, axis=0)
        d_bias = tl.sum(g, axis=0)
        g *= gamma[None, :]
        grad = (g - (tl.sum(g, axis=1) / D)[:, None] - x * (tl.sum(g * x, axis=1) / D)[:, None]) * scale
    if GRAD_TOKENS:
        g = tl.load(element(grad_tokens, b, o0, t, d, M, D), mask=inside, other=0.0).to(tl.float32)
        if RESIZE:
            g *= share[:, None]
        grad += g
    return grad, d_weight, d_bias


@kernel
def token_gather_backward_kernel(
    grad_tokens, grad_normed, tokens,  # [B, M, D]
    statistics,  # [B, M, 2]
    weight,  # [D]
    map_0, map_1, map_2, map_3, map_4, map_5, map_6, map_7,  # gradients
    scratch,  # [programs, 2, D]: gradients of weight and bias
    B, D, N, M, P0, P1, P2, P3, P4, P5, P6, P7, FORMATS,
    LEVELS: tl.constexpr, KINDS: tl.constexpr, ALIGN: tl.constexpr, GRAD_TOKENS: tl.constexpr, RESIZE: tl.constexpr,
    NORM: tl.constexpr, PARAMS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Grid (programs), over which samples x blocks of input tokens are dealt."""
    maps = (map_0, map_1, map_2, map_3, map_4, map_5, map_6, map_7)
    pixels = (P0, P1, P2, P3, P4, P5, P6, P7)
    D = D // ALIGN * ALIGN
    d = tl.arange(0, BD)
    gamma = tl.zeros([BD], tl.float32)
    if NORM:
        gamma += tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    d_weight = tl.zeros([BD], tl.float32)
    d_bias = tl.zeros([BD], tl.float32)
    blocks = tl.cdiv(N, BT)
    for block in range(tl.program_id(0), B * blocks, tl.num_programs(0)):
        b, i0 = block // blocks, block % blocks * BT
        t = tl.arange(0, BT)
        i = i0 + t
        if RESIZE:
            grad = tl.zeros([BT, BD], tl.float32)
            first, end = output_shifts(i0, N, M, BT)
            for s in range(first, end):
                share = hat(i0 + s, i0, t, N, M)
                part, part_weight, part_bias = token_gradient(
                    grad_tokens, grad_normed, tokens, statistics, gamma, b, i0 + s, share, d, M, D,
                    GRAD_TOKENS, NORM, RESIZE, BT, BD,
                )  # fmt: skip
                grad += part
                d_weight += part_weight
                d_bias += part_bias
        else:
            grad, part_weight, part_bias = token_gradient(
                grad_tokens, grad_normed, tokens, statistics, gamma, b, i0, (i < N).to(tl.float32), d, M, D,
                GRAD_TOKENS, NORM, RESIZE, BT, BD,
            )  # fmt: skip
            d_weight += part_weight
            d_bias += part_bias
        transfer(maps, pixels, FORMATS, grad, b, i0, i < N, d, D, LEVELS, KINDS, True, RESIZE, BT)
    if PARAMS:
        row = scratch + tl.program_id(0).to(tl.int64) * D * 2
        tl.store(row + d, d_weight, mask=d < D)
        tl.store(row + D + d, d_bias, mask=d < D)


@functools.lru_cache(maxsize=512)
def forward_plan(
    levels: Levels, batch: int, channels: int, length: int, dtypes: tuple, add: bool, norm: bool, eps: float,
    device: torch.device, alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    sizes, constants, num_warps = _blocks(levels, channels, length, wide=dtypes[0].itemsize == 2)
    constants |= {"ADD": add, "NORM": norm, "EPS": eps}

    def grid(constants: Mapping[str, Any]) -> Grid:
        return batch * -(-length // constants["BT"]), 1, 1

    names = (*MAPS, "addend", "weight", "bias", "tokens", "normed", "statistics")
    return tuning.apply(
        Launch(token_gather_kernel, grid, names, names, sizes, constants, num_warps, context=(device, *dtypes))
    )


@functools.lru_cache(maxsize=512)
def backward_plan(
    levels: Levels, batch: int, channels: int, length: int, dtypes: tuple, add: bool, norm: bool, params: bool,
    device: torch.device, alignment: tuple,
) -> tuple[tuple[Launch, ...], int]:  # fmt: skip
    """Return the launches of one signature and their programs, each of which has a row of scratch."""
    sizes, constants, num_warps = _blocks(levels, channels, length)
    constants |= {"GRAD_TOKENS": add, "NORM": norm, "PARAMS": params}
    programs = batch * -(-sizes["N"] // constants["BT"])
    if params:
        programs = min(programs, PROGRAMS * processors(device))
    tensors = ("grad_tokens", "grad_normed", "tokens", "statistics", "weight", *MAPS, "scratch")
    names = (*tensors, "grad_params")
    context = (device, *dtypes)
    first = Launch(
        token_gather_backward_kernel, lambda _: (programs, 1, 1), tensors, names, {"B": batch, **sizes}, constants,
        num_warps, context=context,
    )  # fmt: skip
    if not params:
        return (tuning.apply(first),), programs
    block, rows = 16, tiles.fit(256, programs)[0]  # 64 bytes of many rows: there are more of them than of blocks
    second = Launch(
        batch_sum.batch_sum_kernel, lambda _: (-(-2 * channels // block), 1, 1), ("scratch", "grad_params"), names,
        {"B": programs, "SCRATCH": 2 * channels, "GRADS": 2 * channels}, {"BB": rows, "BLOCK": block},
        tiles.warps(rows * block), context=context,
    )  # fmt: skip
    return (tuning.apply(first), tuning.apply(second)), programs


def _blocks(
    levels: Levels, channels: int, length: int, wide: bool = False
) -> tuple[dict[str, int], dict[str, Any], int]:
    """Return sizes, constants and warps that both passes share."""
    pixels = [size for size, _ in levels]
    count = sum(pixels)
    kinds = [
        0 if neighbours else gcd(start, size, 1 if length != count else 8).bit_length()
        for start, (size, neighbours) in zip(accumulate(pixels, initial=0), levels, strict=False)
    ]
    # a row of a plane that is read is 64 bytes, with 256 channels
    elements = tiles.TILE * (2 if wide and any(kinds) and length == count else 1)
    rows, columns = max(1, elements // tiles.power(channels)), tiles.power(channels)
    tokens = min(rows, 64, tiles.power(min(length, count)))
    sizes = {"D": channels, "N": count, "M": length}
    sizes |= {f"P{i}": size for i, size in enumerate([*pixels, *[0] * (LEVELS - len(pixels))])}
    sizes["FORMATS"] = sum(kind << 4 * i for i, kind in enumerate(kinds))
    constants = {
        "LEVELS": len(levels),
        "KINDS": sum(1 << kind for kind in set(kinds)),
        "ALIGN": tiles.alignment(channels),
        "RESIZE": length != count,
        "BT": tokens,
        "BD": columns,
    }
    return sizes, constants, min(16, max(4, tokens * columns // 512))


def _level(source: Tensor) -> tuple[int, bool]:
    """Return a level's pixels, and whether its channels are neighbours in memory."""
    if source.dim() == 3:
        return source.shape[1], True
    pixels = source.shape[2] * source.shape[3]
    return pixels, not source.is_contiguous()


def _as_tokens(source: Tensor) -> Tensor:
    """Return a view (B, N, D) of a level."""
    return source if source.dim() == 3 else source.flatten(2).mT


def forward(
    sources: Sequence[Tensor], addend: Tensor | None, weight: Tensor | None, bias: Tensor | None, length: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return tokens (B, length, D), normalised and not, and the float32 statistics (B, length, 2): mean, 1 / deviation.

    Sources are dense maps (B, D, H, W) or contiguous token matrices (B, N, D), all of one dtype; without a weight
    there is no LayerNorm, and what it returns is empty.
    """
    if len(sources) > LEVELS:  # more than a launch takes: the last, small ones are concatenated before
        sources = [*sources[: LEVELS - 1], torch.cat(list(map(_as_tokens, sources[LEVELS - 1 :])), 1)]
    batch, _, channels = _as_tokens(sources[0]).shape
    norm = weight is not None
    tokens = sources[0].new_empty((batch, length, channels))
    normed = torch.empty_like(tokens) if norm else tokens.new_empty(0)
    statistics = tokens.new_empty((batch, length, 2) if norm else 0, dtype=torch.float32)
    others = [tokens if tensor is None else tensor for tensor in (addend, weight, bias)]  # stand-ins are not read
    launch = forward_plan(
        tuple(map(_level, sources)), batch, channels, length, (tokens.dtype, others[1].dtype, others[2].dtype),
        addend is not None, norm, eps, tokens.device, aligned(*sources, others[0]),
    )  # fmt: skip
    run((launch,), (*padded(sources, LEVELS), *others, tokens, normed, statistics))
    return tokens, normed, statistics


def backward(
    grad_tokens: Tensor | None, grad_normed: Tensor | None, tokens: Tensor | None, statistics: Tensor | None,
    weight: Tensor | None, grads: Sequence[Tensor], need_params: bool,
) -> Tensor:  # fmt: skip
    """Write the sources' gradients, and return weight's and bias's (2 * D), empty unless needed.

    Without a norm tokens, statistics and weight are None; an addend's gradient is that of the token matrix beside it.
    """
    given = grad_tokens if grad_normed is None else grad_normed
    assert given is not None
    batch, length, channels = given.shape
    maps, tail = list(grads), []
    if len(maps) > LEVELS:
        tail = list(map(_as_tokens, grads[LEVELS - 1 :]))
        maps[LEVELS - 1 :] = [given.new_empty((batch, sum(grad.shape[1] for grad in tail), channels))]
    # stand-ins for what is not there are not read
    tensors = [given if t is None else t for t in (grad_tokens, grad_normed, tokens, statistics, weight)]
    gamma = tensors[-1]
    launches, programs = backward_plan(
        tuple(map(_level, maps)), batch, channels, length, (given.dtype, gamma.dtype),
        grad_tokens is not None, weight is not None, need_params, given.device, aligned(*tensors[:3], *maps),
    )  # fmt: skip
    scratch = given.new_empty((programs, 2 * channels) if need_params else 0, dtype=torch.float32)
    grad_params = gamma.new_empty(2 * channels if need_params else 0)
    run(launches, (*tensors, *padded(maps, LEVELS), scratch, grad_params))
    if tail:
        for part, grad in zip(maps[-1].split([grad.shape[1] for grad in tail], 1), tail, strict=True):
            grad.copy_(part)
    return grad_params
