"""Token gather: flatten + concatenate + add + resize + LayerNorm in one pass, and its backward.

Levels are maps, contiguous or channels_last, or token matrices, which lie like channels_last maps; behind each other
they are N tokens of D channels. Resizing to M tokens is linear along the tokens, as
F.interpolate(mode="linear", align_corners=False): with the clamped source s(o) = (o + 1/2) N / M - 1/2,

    out(o) = sum over i of hat(s(o) - i) in(i),  hat(t) = max(0, 1 - |t|)

o - i takes few values for the tokens of a block, so that the sum runs over it: each term reads neighbouring tokens.
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

from . import batch_sum, tiles, tuning
from .launch import Grid, Launch
from .plan import _processors
from .scsa import _run

LEVELS = 8  # that one launch takes
MAPS = tuple(f"map_{i}" for i in range(LEVELS))
Levels = tuple[tuple[int, bool], ...]  # of each: pixels, whether channels are neighbours in memory
SIZES = ("B", "D", "N", "M", *(f"P{i}" for i in range(LEVELS)))
PROGRAMS = 3  # of the backward pass per multiprocessor, each with a row of parameter gradients


def kernel(function):
    """Make a Triton kernel that is compiled once for all sizes, and for parameters of any alignment."""
    return triton.jit(function, do_not_specialize=SIZES, do_not_specialize_on_alignment=("weight", "bias"))


@triton.jit
def hat(o, i, N, M):
    """Return the weights of input tokens i in output tokens o, exact up to one rounding."""
    one = M.to(tl.int64) * 2
    source = tl.minimum(tl.maximum((o.to(tl.int64) * 2 + 1) * N - M, 0), one * (N - 1))  # times 2 M
    return tl.maximum(one - tl.abs(source - one * i), 0).to(tl.float32) / one.to(tl.float32)


@triton.jit
def first_input(o, N, M):
    """Return the first input token that output token o reads; it may read the next one too."""
    one = M.to(tl.int64) * 2
    return (tl.minimum(tl.maximum((o.to(tl.int64) * 2 + 1) * N - M, 0), one * (N - 1)) // one).to(tl.int32)


@triton.jit
def readers(i, N, M):
    """Return bounds of the output tokens that read input token i."""
    one = N.to(tl.int64) * 2
    middle = (i.to(tl.int64) * 2 + 1) * M
    first = tl.maximum(middle - 2 * M.to(tl.int64) + N, 0) // one
    return first.to(tl.int32), ((middle + 2 * M.to(tl.int64) - N - 1) // one).to(tl.int32)


@triton.jit
def element(level, b, n, d, D, P, ALIGN: tl.constexpr):
    """Pointers to channels d of tokens n, in sample b of a level of P pixels; ALIGN is its digit of PLANES."""
    level += b.to(tl.int64) * D * P
    if ALIGN == 0:
        return level + n.to(tl.int64)[:, None] * D + d[None, :]
    return level + d.to(tl.int64)[None, :] * P + n[:, None]


@triton.jit
def pixels_of(P, ALIGN: tl.constexpr):
    """Return P, of which the compiler then knows that ALIGN divides it."""
    if ALIGN == 0:
        return P
    return P // ALIGN * ALIGN


@triton.jit
def read_levels(
    maps, pixels, b, n0, used, d, D, PLANES: tl.constexpr, LEVELS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr
):
    """Return those tokens that are used, of n0, n0 + 1, ...: [BT, BD]."""
    n = n0 + tl.arange(0, BT)
    tile = tl.zeros([BT, BD], tl.float32)
    start = 0
    for i in tl.static_range(LEVELS):
        P = pixels_of(pixels[i], (PLANES >> 4 * i) & 15)
        if (n0 < start + P) & (n0 + BT > start):
            inside = ((n >= start) & (n < start + P) & used)[:, None] & (d < D)[None, :]
            at = element(maps[i], b, n - start, d, D, P, (PLANES >> 4 * i) & 15)
            tile += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        start += P
    return tile


@triton.jit
def write_levels(
    maps, pixels, tile, b, n0, d, D, PLANES: tl.constexpr, LEVELS: tl.constexpr, BT: tl.constexpr
):  # fmt: skip
    """Write the tokens n0, n0 + 1, ... of a tile [BT, BD], where there are that many."""
    n = n0 + tl.arange(0, BT)
    start = 0
    for i in tl.static_range(LEVELS):
        P = pixels_of(pixels[i], (PLANES >> 4 * i) & 15)
        if (n0 < start + P) & (n0 + BT > start):
            inside = ((n >= start) & (n < start + P))[:, None] & (d < D)[None, :]
            tl.store(element(maps[i], b, n - start, d, D, P, (PLANES >> 4 * i) & 15), tile, mask=inside)
        start += P


@triton.jit
def read_tokens(
    maps, pixels, addend, b, n0, used, d, N, D,
    ADD: tl.constexpr, PLANES: tl.constexpr, LEVELS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return those tokens that are used, of n0, n0 + 1, ..., with the addend: [BT, BD]."""
    tile = read_levels(maps, pixels, b, n0, used, d, D, PLANES, LEVELS, BT, BD)
    if ADD:
        at = element(addend, b, n0 + tl.arange(0, BT), d, D, N, 0)
        tile += tl.load(at, mask=used[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    return tile


@kernel
def token_gather_kernel(
    map_0, map_1, map_2, map_3, map_4, map_5, map_6, map_7,
    addend,  # [B, N, D]
    weight, bias,  # [D]
    tokens, normed,  # [B, M, D]
    statistics,  # [B, M, 2]
    D, N, M, P0, P1, P2, P3, P4, P5, P6, P7,
    LEVELS: tl.constexpr, PLANES: tl.constexpr, ALIGN: tl.constexpr, ADD: tl.constexpr, RESIZE: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of output tokens)."""
    maps = (map_0, map_1, map_2, map_3, map_4, map_5, map_6, map_7)
    pixels = (P0, P1, P2, P3, P4, P5, P6, P7)
    D = D // ALIGN * ALIGN
    blocks = tl.cdiv(M, BT)
    b, o0 = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BT
    o = o0 + tl.arange(0, BT)
    d = tl.arange(0, BD)
    if RESIZE:
        last = tl.minimum(o0 + BT, M) - 1
        shift, other = first_input(o0, N, M) - o0, first_input(last, N, M) - last
        tile = tl.zeros([BT, BD], tl.float32)
        for s in range(tl.minimum(shift, other), tl.maximum(shift, other) + 2):
            share = hat(o, o + s, N, M)
            used = (share > 0) & (o < M)
            part = read_tokens(maps, pixels, addend, b, o0 + s, used, d, N, D, ADD, PLANES, LEVELS, BT, BD)
            tile += share[:, None] * part
    else:
        tile = read_tokens(maps, pixels, addend, b, o0, o < M, d, N, D, ADD, PLANES, LEVELS, BT, BD)
    tile = tile.to(tokens.dtype.element_ty)
    inside = (o < M)[:, None] & (d < D)[None, :]
    tl.store(element(tokens, b, o, d, D, M, 0), tile, mask=inside)
    if NORM:
        tile = tile.to(tl.float32)
        mean = tl.sum(tile, axis=1) / D
        tile = tl.where((d < D)[None, :], tile - mean[:, None], 0.0)
        scale = tl.rsqrt(tl.sum(tile * tile, axis=1) / D + EPS)
        gamma = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
        beta = tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
        tile = tile * scale[:, None] * gamma[None, :] + beta[None, :]
        tl.store(element(normed, b, o, d, D, M, 0), tile, mask=inside)
        at = statistics + (b.to(tl.int64) * M + o) * 2
        tl.store(at, mean, mask=o < M)
        tl.store(at + 1, scale, mask=o < M)


@triton.jit
def token_gradient(
    grad_tokens, grad_normed, tokens, statistics, gamma, b, o, share, d, M, D,
    GRAD_TOKENS: tl.constexpr, NORM: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return a share of the gradient of output tokens o, [BT, BD], and what they add to the parameters', [BD] each."""
    inside = (share > 0)[:, None] & (d < D)[None, :]
    grad = tl.zeros([BT, BD], tl.float32)
    d_weight = tl.zeros([BD], tl.float32)
    d_bias = tl.zeros([BD], tl.float32)
    if NORM:
        at = statistics + (b.to(tl.int64) * M + o) * 2
        mean = tl.load(at, mask=share > 0, other=0.0)[:, None]
        scale = tl.load(at + 1, mask=share > 0, other=0.0)[:, None]
        x = tl.load(element(tokens, b, o, d, D, M, 0), mask=inside, other=0.0).to(tl.float32)
        x = (x - mean) * scale
        g = tl.load(element(grad_normed, b, o, d, D, M, 0), mask=inside, other=0.0).to(tl.float32) * share[:, None]
        d_weight += tl.sum(g * x, axis=0)
        d_bias += tl.sum(g, axis=0)
        g *= gamma[None, :]
        grad = (g - (tl.sum(g, axis=1) / D)[:, None] - x * (tl.sum(g * x, axis=1) / D)[:, None]) * scale
    if GRAD_TOKENS:
        g = tl.load(element(grad_tokens, b, o, d, D, M, 0), mask=inside, other=0.0)
        grad += g.to(tl.float32) * share[:, None]
    return grad, d_weight, d_bias


@kernel
def token_gather_backward_kernel(
    grad_tokens, grad_normed, tokens,  # [B, M, D]
    statistics,  # [B, M, 2]
    weight,  # [D]
    map_0, map_1, map_2, map_3, map_4, map_5, map_6, map_7,  # gradients
    scratch,  # [programs, 2, D]: gradients of weight and bias
    B, D, N, M, P0, P1, P2, P3, P4, P5, P6, P7,
    LEVELS: tl.constexpr, PLANES: tl.constexpr, ALIGN: tl.constexpr, GRAD_TOKENS: tl.constexpr, RESIZE: tl.constexpr,
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
        i = i0 + tl.arange(0, BT)
        if RESIZE:
            last = tl.minimum(i0 + BT, N) - 1
            first_0, last_0 = readers(i0, N, M)
            first_1, last_1 = readers(last, N, M)
            grad = tl.zeros([BT, BD], tl.float32)
            for s in range(tl.minimum(first_0 - i0, first_1 - last), tl.maximum(last_0 - i0, last_1 - last) + 1):
                o = i + s
                share = tl.where((o >= 0) & (o < M), hat(o, i, N, M), 0.0)
                part, part_weight, part_bias = token_gradient(
                    grad_tokens, grad_normed, tokens, statistics, gamma, b, o, share, d, M, D,
                    GRAD_TOKENS, NORM, BT, BD,
                )  # fmt: skip
                grad += part
                d_weight += part_weight
                d_bias += part_bias
        else:
            grad, part_weight, part_bias = token_gradient(
                grad_tokens, grad_normed, tokens, statistics, gamma, b, i, (i < N).to(tl.float32), d, M, D,
                GRAD_TOKENS, NORM, BT, BD,
            )  # fmt: skip
            d_weight += part_weight
            d_bias += part_bias
        write_levels(maps, pixels, grad, b, i0, d, D, PLANES, LEVELS, BT)
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
    sizes, constants, num_warps = _blocks(levels, channels, length, dtypes[0])
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
    sizes, constants, num_warps = _blocks(levels, channels, length, dtypes[0])
    constants |= {"GRAD_TOKENS": add, "NORM": norm, "PARAMS": params}
    programs = batch * -(-sizes["N"] // constants["BT"])
    if params:
        programs = min(programs, PROGRAMS * _processors(device))
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
    levels: Levels, channels: int, length: int, dtype: torch.dtype
) -> tuple[dict[str, int], dict[str, Any], int]:
    """Return sizes, constants and warps that both passes share."""
    pixels = [size for size, _ in levels]
    count = sum(pixels)
    # what divides a level's planes and its first token; resizing shifts the tokens anyhow
    dividers = list(accumulate(pixels, gcd, initial=1 if length != count else 8))[1:]
    planes = [0 if neighbours else divider for divider, (_, neighbours) in zip(dividers, levels, strict=True)]
    elements = tiles.TILE * (2 if any(planes) and dtype.itemsize == 2 else 1)  # 64 bytes of a plane, at 256 channels
    rows, columns = max(1, elements // tiles.power(channels)), tiles.power(channels)
    tokens = min(rows, 64, tiles.power(min(length, count)))
    sizes = {"D": channels, "N": count, "M": length}
    sizes |= {f"P{i}": size for i, size in enumerate([*pixels, *[0] * (LEVELS - len(pixels))])}
    constants = {
        "LEVELS": len(levels),
        "PLANES": sum(divider << 4 * i for i, divider in enumerate(planes)),
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
    return pixels, pixels == 1 or not source.is_contiguous()


def _as_tokens(source: Tensor) -> Tensor:
    """Return a view (B, N, D) of a level."""
    return source if source.dim() == 3 else source.flatten(2).mT


def _aligned(*tensors: Tensor) -> tuple[bool, ...]:
    return tuple(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def _padded(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return as many maps as a kernel takes; it does not touch the repeated ones."""
    return (*maps, *[maps[0]] * (LEVELS - len(maps)))


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
        addend is not None, norm, eps, tokens.device, _aligned(*sources, others[0]),
    )  # fmt: skip
    _run((launch,), (*_padded(sources), *others, tokens, normed, statistics))
    return tokens, normed, statistics


def backward(
    grad_tokens: Tensor | None, grad_normed: Tensor | None, tokens: Tensor, statistics: Tensor, weight: Tensor | None,
    sources: Sequence[Tensor], length: int, need_params: bool,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Return the sources' gradients, and weight's and bias's (2 * D), empty unless needed.

    Of the sources only shapes and formats are used; an addend's gradient is that of the one token matrix beside it.
    """
    batch, _, channels = tokens.shape
    grads = [torch.empty_like(source) for source in sources]
    tail = list(map(_as_tokens, grads[LEVELS - 1 :])) if len(grads) > LEVELS else []
    maps = [*grads[: LEVELS - 1], torch.cat(tail, 1)] if tail else grads
    # stand-ins for what is not there are not read
    gradients = [tokens if tensor is None else tensor for tensor in (grad_tokens, grad_normed)]
    gamma = tokens if weight is None else weight
    launches, programs = backward_plan(
        tuple(map(_level, maps)), batch, channels, length, (tokens.dtype, gamma.dtype),
        grad_tokens is not None, weight is not None, need_params, tokens.device, _aligned(*gradients, tokens, *maps),
    )  # fmt: skip
    scratch = tokens.new_empty((programs, 2 * channels) if need_params else 0, dtype=torch.float32)
    grad_params = gamma.new_empty(2 * channels if need_params else 0)
    _run(launches, (*gradients, tokens, statistics, gamma, *_padded(maps), scratch, grad_params))
    for part, grad in zip(maps[-1].split([grad.shape[1] for grad in tail], 1), tail, strict=True) if tail else ():
        grad.copy_(part)
    return grads, grad_params
