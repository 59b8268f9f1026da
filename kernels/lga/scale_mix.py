"""LGA's scale features in one pass over x: plans and calls of `scale_mix_forward` and `scale_mix_backward`.

Beside x (B, D, H, W) there are coarse maps u_i (B, D, ceil(H / 2^(i-1)), ceil(W / 2^(i-1))), i = 1 ... S, and a
position encoding (1, D, h, w), all resized to x by nearest neighbour, floor(i * in / out). The shares of S + 1 features
are a softmax per pixel; that of x itself drops out of the sum (`fastattn.lga.reference`).

Places are 32-bit: H * h and W * w stay below 2^31, and so do H * H / 2 and W * W / 2.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import batch_sum, tiles, tuning
from ..common.launch import Grid, Launch, aligned, processors
from ..common.run import run
from .scale_mix_backward import encoding_gradient_kernel, scale_mix_backward_kernel
from .scale_mix_forward import scale_mix_kernel

ROWS = 4  # of a block: those that read one row of a map at a quarter of the resolution


def _blocks(
    shape: Sequence[int], scales: int, itemsize: int, channels_last: bool, device: torch.device
) -> tuple[dict[str, int], dict[str, Any], int]:
    """Return sizes, constants and warps that both passes share."""
    batch, channels, height, width = shape
    run = 8 if channels_last else 32 // itemsize  # columns of a block at least: of a plane, 32 bytes
    columns = min((2 * run, run), key=lambda n: -(-width // n) * n)
    rows = min(ROWS, tiles.power(height))
    if batch * -(-height // rows) * -(-width // columns) < 2 * processors(device):
        columns = run
    columns = min(columns, tiles.power(width))
    block = tiles.fit(tiles.TILE // (2 * rows * columns), channels)[0]
    constants = {
        "SCALES": scales,
        "SHARES": tiles.power(scales + 1),
        "NHWC": channels_last,
        "ALIGN": tiles.alignment(channels if channels_last else width),
        "BC": block,
        "BH": rows,
        "BW": columns,
    }
    sizes = {"D": channels, "H": height, "W": width}
    return sizes, constants, tiles.warps(2 * block * rows * columns)  # several tiles live: 8 elements of each a thread


def _grid(shape: Sequence[int], constants: Mapping[str, Any]) -> Grid:
    batch, _, height, width = shape
    return batch * -(-height // constants["BH"]) * -(-width // constants["BW"]), 1, 1


@functools.lru_cache(maxsize=512)
def forward_plan(
    shape: torch.Size, scales: int, encoding: tuple[int, int], dtypes: tuple, channels_last: bool,
    device: torch.device, alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    sizes, constants, num_warps = _blocks(shape, scales, dtypes[0].itemsize, channels_last, device)
    sizes |= {"PH": encoding[0], "PW": encoding[1]}
    names = ("x", "us", "weight", "bias", "encoding", "z", "shares")
    grid = functools.partial(_grid, shape)
    context = (device, *dtypes)
    return tuning.apply(Launch(scale_mix_kernel, grid, names, names, sizes, constants, num_warps, context=context))


@functools.lru_cache(maxsize=512)
def backward_plan(
    shape: torch.Size, scales: int, encoding: tuple[int, int], dtypes: tuple, channels_last: bool, params: bool,
    device: torch.device, alignment: tuple,
) -> tuple[tuple[Launch, ...], tuple[int, int], tuple[int, int]]:  # fmt: skip
    """Return the launches of one signature, and rows x floats of both scratches: of w and b, and of the encoding."""
    batch, channels, height, width = shape
    sizes, constants, num_warps = _blocks(shape, scales, dtypes[0].itemsize, channels_last, device)
    grid = functools.partial(_grid, shape)
    tensors = ("grad_z", "x", "us", "weight", "shares", "grad_x", "grad_us", "scratch")
    names = (*tensors, "grad_weights", "encoding_scratch", "grad_encoding")
    context = (device, *dtypes)
    first = Launch(
        scale_mix_backward_kernel, grid, tensors, names, sizes, constants | {"PARAMS": params}, num_warps,
        context=context, registers=tiles.REGISTERS,
    )  # fmt: skip
    if not params:
        return (tuning.apply(first),), (0, 0), (0, 0)

    readers = -(-height // encoding[0]) * -(-width // encoding[1])  # most that one of the encoding's pixels has
    extent = encoding[0] * encoding[1]
    if channels_last:
        block, terms, places = tiles.fit(2048, min(channels, 64), min(readers, 8), extent)
    else:
        places, terms, block = tiles.fit(2048, min(extent, 64), min(readers, 8), channels)
    programs = -(-channels // block) * -(-extent // places)
    parts = min(batch, max(1, 2 * processors(device) // programs))
    second = Launch(
        encoding_gradient_kernel, lambda _: (programs, parts, 1), ("grad_z", "encoding_scratch"), names,
        {"B": batch, **sizes, "PH": encoding[0], "PW": encoding[1]},
        {"NHWC": channels_last, "ALIGN": constants["ALIGN"], "BC": block, "BQ": places, "BT": terms},
        tiles.warps(block * places * terms), context=context,
    )  # fmt: skip
    scratch = first.grid[0], (scales + 1) * (channels + 1)
    encoding_scratch = parts, channels * extent
    sums = [
        _row_sum(*scratch, ("scratch", "grad_weights"), names, context),
        _row_sum(*encoding_scratch, ("encoding_scratch", "grad_encoding"), names, context),
    ]
    return tuple(map(tuning.apply, (first, second, *sums))), scratch, encoding_scratch


def _row_sum(rows: int, floats: int, tensors: tuple[str, str], names: Sequence[str], context: tuple) -> Launch:
    taken = tiles.fit(512, rows)[0]
    block = max(8, 256 // taken)  # of many rows 32 bytes each
    return Launch(
        batch_sum.batch_sum_kernel, lambda _: (-(-floats // block), 1, 1), tensors, names,
        {"B": rows, "SCRATCH": floats, "GRADS": floats}, {"BB": taken, "BLOCK": block}, tiles.warps(taken * block),
        context=context,
    )  # fmt: skip


def forward(
    x: Tensor, coarse: Sequence[Tensor], weight: Tensor, bias: Tensor, position_encoding: Tensor
) -> tuple[Tensor, Tensor]:
    """Return z like x (B, D, H, W), and the shares (B, S + 1, H, W) in float32.

    x is dense, and so are the 1 to 7 coarse maps in its dtype and format; the parameters (S + 1, D, 1, 1), (S + 1)
    and (1, D, h, w) are contiguous, of one dtype.
    """
    batch, _, height, width = x.shape
    z = torch.empty_like(x)
    shares = x.new_empty((batch, len(coarse) + 1, height, width), dtype=torch.float32)
    launch = forward_plan(
        x.shape, len(coarse), position_encoding.shape[2:], (x.dtype, weight.dtype), not x.is_contiguous(), x.device,
        aligned(x, *coarse),
    )  # fmt: skip
    run((launch,), (x, tuple(coarse), weight, bias, position_encoding, z, shares))
    return z, shares


def backward(
    grad_z: Tensor, x: Tensor, coarse: Sequence[Tensor], shares: Tensor, weight: Tensor, position_encoding: Tensor,
    need_params: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:  # fmt: skip
    """Return the gradients of x, of the coarse maps, and of the parameters behind each other, empty unless needed.

    grad_z is in x's format. Of the position encoding only the shape is used.
    """
    grad_x, grad_coarse = torch.empty_like(x), list(map(torch.empty_like, coarse))
    launches, scratch, encoding_scratch = backward_plan(
        x.shape, len(coarse), position_encoding.shape[2:], (x.dtype, weight.dtype), not x.is_contiguous(),
        need_params, x.device, aligned(grad_z, x, *coarse, shares),
    )  # fmt: skip
    grad_params = weight.new_empty(scratch[1] + encoding_scratch[1])
    rows, encoding_rows = (x.new_empty(size, dtype=torch.float32) for size in (scratch, encoding_scratch))
    run(
        launches,
        (
            grad_z, x, tuple(coarse), weight, shares, grad_x, tuple(grad_coarse), rows,
            grad_params[: scratch[1]], encoding_rows, grad_params[scratch[1] :],
        ),
    )  # fmt: skip
    return grad_x, grad_coarse, grad_params
