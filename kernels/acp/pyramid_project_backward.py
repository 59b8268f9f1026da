"""The adjoint of the resizing in `pyramid_project`: of each smaller map, the sums of the gradient over the pixels that
read one of its pixels.
"""

import functools
from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from ..common import tiles, tuning
from ..common.chain import begin
from ..common.launch import Launch, aligned, processors
from ..common.maps import channel_block, pixels, sample
from ..common.run import run
from ..common.tuples import chosen
from .pyramid_project import kernel

PARTS = 4  # of sums, at least, for a multiprocessor


@kernel
def resized_sums_kernel(
    grad,  # as x above
    sums,  # LEVELS of [B, C, HS[l], WS[l]], none larger than the one before it
    C, H, W, XB, PREFIX, ROWS, HS, WS,
    LEVELS: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of each resized map over the pixels that have one source; grid (samples x blocks of
    channels, parts: the pixels of ROWS rows of the smallest map)."""
    begin()
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    grad = sample(grad, b, XB) + PREFIX * C
    c = c0 + tl.arange(0, BC)[:, None]
    step = C if NHWC else 1  # from a pixel to the next
    part, least = tl.program_id(1), HS[LEVELS - 1]
    first, end = (part * ROWS * H + least - 1) // least, ((part + 1) * ROWS * H + least - 1) // least
    for l in range(LEVELS):  # after the first, pixels are read from the cache
        HL, WL = chosen(HS, l, LEVELS), chosen(WS, l, LEVELS)
        level = sample(chosen(sums, l, LEVELS), b, C * HL * WL)
        # rows of sources whose first pixels are in the part
        above, below = ((first - 1) * HL + H) // H, tl.minimum(((end - 1) * HL + H) // H, HL)
        for f0 in range(above * WL, below * WL, BF):
            f = f0 + tl.arange(0, BF)[None, :]
            row, column = f // WL, f % WL
            top, left = (row * H + HL - 1) // HL, (column * W + WL - 1) // WL
            rows = tl.where((c < C) & (row < below), ((row + 1) * H + HL - 1) // HL - top, 0)
            columns = ((column + 1) * W + WL - 1) // WL - left
            at = grad + pixels(c, top, left, C, H, W, NHWC)
            total = tl.zeros([BC, BF], tl.float32)
            for i in range(tl.cdiv(H, HL)):
                for j in range(tl.cdiv(W, WL)):
                    inside = (i < rows) & (j < columns)
                    total += tl.load(at + j * step, mask=inside, other=0.0).to(tl.float32)
                at += W * step
            tl.store(level + pixels(c, row, column, C, HL, WL, NHWC), total, mask=rows > 0)


@functools.lru_cache(maxsize=512)
def sums_plan(
    shape: Sequence[int], levels: Sequence[tuple[int, int]], prefix: int, channels_last: bool, dtypes: tuple,
    device: torch.device, alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature."""
    batch, channels, height, width = shape
    most, (rows, columns) = levels[0][0] * levels[0][1], levels[-1]
    if channels_last:  # a thread has 128 bits of channels
        item = dtypes[0].itemsize
        bc, bf = tiles.fit(2048 // item, min(channels, tiles.SEGMENT // item), most)
    else:
        bf, bc = tiles.fit(256, min(most, 32), channels)
    programs = batch * -(-channels // bc)
    part = max(1, min(rows, bf // columns, programs * rows // (PARTS * processors(device))))
    sizes: dict[str, int | tuple[int, ...]] = {"C": channels, "H": height, "W": width}
    sizes |= {"XB": (prefix + height * width) * channels, "PREFIX": prefix, "ROWS": part}
    sizes |= {"HS": tuple(height for height, _ in levels), "WS": tuple(width for _, width in levels)}
    align = tiles.alignment(channels) if channels_last else 1
    constants = {"LEVELS": len(levels), "NHWC": channels_last, "ALIGN": align, "BC": bc, "BF": bf}
    names, grid = ("grad", "sums"), (programs, -(-rows // part), 1)
    launch = Launch(resized_sums_kernel, lambda _: grid, names, names, sizes, constants, 4, context=(device, *dtypes))
    return tuning.apply(launch)


def resized_sums(grad: Tensor, size: tuple[int, int], channels_last: bool, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of maps `like` these that were resized, each no larger than the one before it, of the
    gradient of x as it is above."""
    sums = [torch.empty_like(level) for level in like]
    batch, channels = like[0].shape[:2]
    prefix = grad.shape[1] - size[0] * size[1] if grad.dim() == 3 else 0
    launch = sums_plan(
        (batch, channels, *size), tuple((level.shape[2], level.shape[3]) for level in like), prefix, channels_last,
        (grad.dtype, sums[0].dtype), grad.device, aligned(grad, *sums),
    )  # fmt: skip
    run((launch,), (grad, tuple(sums)))
    return sums
