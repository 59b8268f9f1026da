"""The 1x1 convolution of a map (B, C, H, W) and of smaller ones that are resized to it, in one pass: what is formed at
low resolution stays in the program, which writes the sum. The adjoint is in `pyramid_project_backward`.

A program has a tile of TH x TW pixels and, of each smaller map, their sources: rows of Q pixels, SOURCES in all at
most. Its blocks of BN output channels are the sum of a product of the tile, and one of each map's sources, which the
tile's pixels pick: that is a product with zeros and ones, and what is not finite spreads over the tile. Resizing is by
nearest neighbour, with the integer rule floor(i * in / out).

Samples of the map and of the result lie XB elements apart, behind PREFIX tokens of C channels, which are copied.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import tiles, tuning
from ..common.chain import begin
from ..common.launch import Launch, aligned, processors, product_precision
from ..common.maps import pixels, sample
from ..common.run import run
from ..common.tuples import chosen, zeros

# of float32: the pixels of a program, with up to 192 channels, those of a product at a time, and stages. float32 has so
# few that no product is a warpgroup's: Triton 3.6 lets one of two overwrite what the other still multiplies
BLOCKS = {False: (128, 32, 3), True: (32, 16, 2)}
SIZES = ("C", "H", "W", "XB", "PREFIX", "ROWS", "HS", "WS", "QS")
kernel = functools.partial(triton.jit, do_not_specialize=SIZES)


@triton.jit
def products(
    accs, source, h, w, here, weight, n0, C, H, W, STEP,
    COUNT: tl.constexpr, NHWC: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Return COUNT tiles [pixels, BN] plus the products of a sample's pixels with the rows of a matrix from n0 on, STEP
    elements apart."""
    n = n0 + tl.arange(0, BN)
    for k0 in range(0, C, BK):
        k = k0 + tl.arange(0, BK)
        inside = here[:, None]
        if not EVEN:
            inside = inside & (k < C)[None, :]
        at = source + pixels(k[None, :], h[:, None], w[:, None], C, H, W, NHWC)
        values = tl.load(at, mask=inside, other=0.0).to(weight.dtype.element_ty)
        more = ()
        for j in tl.static_range(COUNT):
            rows = weight + ((n + j * BN)[:, None] * STEP + k[None, :])
            inside = (n + j * BN < C)[:, None]
            if not EVEN:
                inside = inside & (k < C)[None, :]
            matrix = tl.load(rows, mask=inside, other=0.0)
            more += (tl.dot(values, tl.trans(matrix), accs[j], input_precision=PRECISION),)
        accs = more
    return accs


@triton.jit
def add_resized(
    accs, level, h, w, h0, w0, weight, n0, C, H, W, HL, WL, Q, STEP, COUNT: tl.constexpr, NHWC: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, SOURCES: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return the sums plus the products of the sources of a tile's pixels, rows of Q, each at its pixels."""
    r = tl.arange(0, SOURCES)
    top, left = h0 * HL // H, w0 * WL // W
    row, column = top + r // Q, left + r % Q
    down = (tl.minimum(h0 + TH, H) - 1) * HL // H - top + 1
    right = (tl.minimum(w0 + TW, W) - 1) * WL // W
    known = (r < down * Q) & (column <= right)
    lows = zeros(COUNT, SOURCES, BN)
    lows = products(lows, level, row, column, known, weight, n0, C, HL, WL, STEP, COUNT, NHWC, EVEN, PRECISION, BN, BK)
    picks = ((h * HL // H - top) * Q + w * WL // W - left)[:, None] == r[None, :]
    dtype = weight.dtype.element_ty
    more = ()
    for j in tl.static_range(COUNT):
        more += (tl.dot(picks.to(dtype), lows[j].to(dtype), accs[j], input_precision=PRECISION),)
    return more


@kernel
def pyramid_project_kernel(
    x,  # [B, C, H, W] or [B, PREFIX + H * W, C]
    maps,  # LEVELS of [B, C, HS[l], WS[l]]
    weight,  # [C, (LEVELS + 1) * C], or [C, C] of the sum
    bias, out,
    C, H, W, XB, PREFIX, HS, WS, QS,
    LEVELS: tl.constexpr, CONCAT: tl.constexpr, RESIDUAL: tl.constexpr, COPY: tl.constexpr, NHWC: tl.constexpr,
    ALIGN: tl.constexpr, ALIGN_W: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, TH: tl.constexpr,
    TW: tl.constexpr, SOURCES: tl.constexpr, COUNT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid (samples x tiles, and one that copies the prefix, parts of COUNT * BN output channels)."""
    begin()
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    W = W // ALIGN_W * ALIGN_W
    across = tl.cdiv(W, TW)
    count = tl.cdiv(H, TH) * across
    blocks = count
    if COPY:
        blocks += 1
    b, tile = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    x, out = sample(x, b, XB), sample(out, b, XB)
    n0 = tl.program_id(1) * (COUNT * BN)
    if tile < count:
        x, out = x + PREFIX * C, out + PREFIX * C
        h0, w0 = tile // across * TH, tile % across * TW
        p = tl.arange(0, TH * TW)
        h, w = h0 + p // TW, w0 + p % TW
        here = (h < H) & (w < W)
        step = C
        if CONCAT:
            step = C * (LEVELS + 1)
        accs = zeros(COUNT, TH * TW, BN)
        for l in range(LEVELS):  # rolled: fewer registers
            matrix = weight
            if CONCAT:
                matrix += (l + 1) * C
            HL, WL, Q = chosen(HS, l, LEVELS), chosen(WS, l, LEVELS), chosen(QS, l, LEVELS)
            level = sample(chosen(maps, l, LEVELS), b, C * HL * WL)
            accs = add_resized(
                accs, level, h, w, h0, w0, matrix, n0, C, H, W, HL, WL, Q, step, COUNT, NHWC, EVEN, PRECISION, TH, TW,
                SOURCES, BN, BK,
            )  # fmt: skip
        accs = products(accs, x, h, w, here, weight, n0, C, H, W, step, COUNT, NHWC, EVEN, PRECISION, BN, BK)
        for j in tl.static_range(COUNT):
            n = n0 + j * BN + tl.arange(0, BN)
            total = accs[j] + tl.load(bias + n, mask=n < C, other=0.0).to(tl.float32)[None, :]
            inside = here[:, None] & (n < C)[None, :]
            place = pixels(n[None, :], h[:, None], w[:, None], C, H, W, NHWC)
            if RESIDUAL:
                total += tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(out + place, total, mask=inside)
    if COPY:
        if tile == count:
            for i in range(tl.program_id(1) * 1024, PREFIX * C, tl.num_programs(1) * 1024):
                place = i + tl.arange(0, 1024)
                tl.store(out + place, tl.load(x + place, mask=place < PREFIX * C), mask=place < PREFIX * C)


def blocks_of(channels: int) -> tuple[int, int]:
    """Return the size of a block of output channels and how many a program has, at most: all, of little excess."""
    size = min((64, 32, 16), key=lambda size: (-(-channels // size) * size, -size))
    return size, min(-(-channels // size), 384 // size)


def region(size: int, source: int, tile: int) -> int:
    """Return the most sources that the pixels of a tile have along an axis."""
    starts = range(0, size, tile)
    return max((min(start + tile, size) - 1) * source // size - start * source // size + 1 for start in starts)


@functools.lru_cache(maxsize=512)
def project_plan(
    shape: Sequence[int], levels: Sequence[tuple[int, int]], prefix: int, concat: bool, residual: bool,
    channels_last: bool, precision: str, dtypes: tuple, device: torch.device, alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    batch, channels, height, width = shape
    bn, count = blocks_of(channels)
    most, bk, stages = BLOCKS[dtypes[1] is torch.float32]
    pixels = min(most, most * 192 // (bn * count))
    across = min(16, max(4, tiles.power(width)))
    down = min(pixels // across, max(4, tiles.power(height)))
    regions = tuple(region(width, columns, across) for _, columns in levels)
    sizes: dict[str, int | tuple[int, ...]] = {
        "C": channels, "H": height, "W": width, "XB": (prefix + height * width) * channels, "PREFIX": prefix,
        "HS": tuple(rows for rows, _ in levels), "WS": tuple(columns for _, columns in levels), "QS": regions,
    }  # fmt: skip
    constants: dict[str, Any] = {
        "LEVELS": len(levels), "CONCAT": concat, "RESIDUAL": residual, "COPY": prefix > 0, "NHWC": channels_last,
        "ALIGN": tiles.alignment(channels), "ALIGN_W": 1 if channels_last else tiles.alignment(width),
        "EVEN": channels % bk == 0, "PRECISION": precision, "TH": down, "TW": across,
    }  # fmt: skip
    sources = 16
    for (rows, _), most in zip(levels, regions, strict=True):
        sources = max(sources, tiles.power(region(height, rows, down) * most))
    constants |= {"SOURCES": sources, "COUNT": count, "BN": bn, "BK": bk}
    programs = batch * (-(-height // down) * -(-width // across) + (prefix > 0))
    # most multiprocessors would be idle; each part reads the tile again, which smaller tiles would do with the matrix
    while count > 1 and 2 * programs * -(-channels // (bn * count)) < processors(device):
        count = -(-count // 2)
    constants["COUNT"] = count
    grid = programs, -(-channels // (bn * count)), 1
    names = ("x", "maps", "weight", "bias", "out")
    launch = Launch(
        pyramid_project_kernel, lambda _: grid, names, names, sizes, constants, 8, context=(device, *dtypes),
        num_stages=stages,
    )  # fmt: skip
    return tuning.apply(launch)


def project(
    x: Tensor, size: tuple[int, int], channels_last: bool, maps: Sequence[Tensor], weight: Tensor, bias: Tensor,
    residual: bool, out: Tensor,
) -> None:  # fmt: skip
    """Write the 1x1 convolution of x and smaller maps to out, with x itself where there is a residual.

    x and out are contiguous or channels_last maps (B, C, H, W) or contiguous tokens (B, prefix + H * W, C), whose first
    are copied; the maps are dense in the same format.
    """
    batch, channels = x.shape[0], weight.shape[0]
    prefix = x.shape[1] - size[0] * size[1] if x.dim() == 3 else 0
    launch = project_plan(
        (batch, channels, *size), tuple((level.shape[2], level.shape[3]) for level in maps), prefix,
        weight.shape[1] != channels, residual, channels_last, product_precision(weight.dtype),
        (x.dtype, weight.dtype, out.dtype), x.device, aligned(x, *maps, weight, bias, out),
    )  # fmt: skip
    run((launch,), (x, tuple(maps), weight, bias, out))
