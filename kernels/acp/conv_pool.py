"""Depthwise convolution and max pooling of a map (B, C, H, W) in one pass, and its gradients: plans and calls of
`conv_pool_forward` and `conv_pool_backward`. The convolution's output is not stored.

Samples lie XB elements apart, so that the grid of tokens behind prefix tokens is a map. Taps, (K * K, C), and below
them the bias are packed with neighbouring channels.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import batch_sum, tiles, tuning
from ..common.launch import Grid, Launch, aligned, processors
from ..common.run import run
from .conv_pool_backward import conv_pool_input_kernel, conv_pool_params_kernel
from .conv_pool_forward import conv_pool_kernel

WINDOW = 16  # the largest, whose places a byte holds
SUMS = 9  # pixels of a window that a thread forms at a time, at most
WARPS, PARAMS_WARPS = 24, 8  # per multiprocessor, as registers allow
HALO = 8  # a part has at least so many times the rows that it reads besides, unless multiprocessors are left over
CACHED = 1 << 15  # bytes that a warp reads again for each column of taps


class _Cells:
    """What launches over the cells of a map share."""

    def __init__(
        self, shape: Sequence[int], samples: int, kernel_size: int, pool_size: int, channels_last: bool, dtypes: tuple,
        device: torch.device,
    ):  # fmt: skip
        self.batch, channels, height, width = shape
        self.sizes = {"C": channels, "H": height, "W": width, "XB": samples}
        self.processors, self.context = processors(device), (device, *dtypes)
        down, right = -(-height // pool_size), -(-width // pool_size)
        if channels_last:
            segment = min(channels, tiles.SEGMENT // dtypes[0].itemsize)
            elements = 4 if kernel_size <= 5 and pool_size <= 3 else 2  # of a thread
            bc, bf = tiles.fit(128 * elements, segment, down * right)
            self.num_warps = max(1, bc * bf // (32 * elements))
            align = min(tiles.alignment(channels), tiles.alignment(samples))
        else:  # a thread has 2 cells of one channel, which share its taps
            bf, bc = tiles.fit(64, down * right, channels)
            self.num_warps, align = 1, 1
        self.known = {
            "K": kernel_size, "S": pool_size, "R": pool_size if pool_size**2 <= SUMS else 1,
            "V": kernel_size if kernel_size**2 <= SUMS else 1, "NHWC": channels_last, "ALIGN": align,
            "BC": bc, "BF": bf,
        }  # fmt: skip
        self.columns, self.blocks = -(-channels // bc), -(-down * right // bf)
        self.most = down * pool_size // max(1, kernel_size - 1)  # parts that have as many rows as they read besides

    def over_cells(self, function: Any, tensors: Sequence[str], names: Sequence[str], **constants: bool) -> Launch:
        """Return a launch whose programs write what belongs to blocks of channels and parts of a sample's cells."""
        programs = self.batch * self.columns
        few = min(self.most // HALO, WARPS * self.processors // (programs * self.num_warps))
        parts = max(1, min(self.blocks, max(few, min(self.most, self.processors // programs))))
        parts = -(-self.blocks // -(-self.blocks // parts))
        return self.launch(function, (self.batch * self.columns, parts, 1), tensors, names, self.sizes, constants)

    def over_samples(self, tensors: Sequence[str], names: Sequence[str]) -> tuple[Launch, int]:
        """Return the launch of the parameters' gradients, and its parts."""
        blocks, known = self.batch * self.blocks, self.known
        part = max(1, blocks * self.columns * self.num_warps // (PARAMS_WARPS * self.processors))
        if known["V"] < known["K"]:
            size = known["BC"] * known["BF"] * (known["S"] ** 2 + 1) * self.context[1].itemsize
            part = max(1, min(part, CACHED * self.num_warps // size))
        parts = -(-blocks // part)
        grid = (parts * self.columns, 1, 1)
        sizes = {"B": self.batch, **self.sizes}
        return self.launch(conv_pool_params_kernel, grid, tensors, names, sizes, {"PART": part}), parts

    def launch(
        self, function: Any, grid: Grid, tensors: Sequence[str], names: Sequence[str], sizes: dict[str, int],
        constants: dict[str, Any],
    ) -> Launch:  # fmt: skip
        known = self.known | constants
        constants = {name: known[name] for name in inspect.signature(function.fn).parameters if name in known}
        return tuning.apply(
            Launch(function, lambda _: grid, tensors, names, sizes, constants, self.num_warps, context=self.context)
        )


@functools.lru_cache(maxsize=512)
def forward_plan(
    shape: Sequence[int], samples: int, kernel_size: int, pool_size: int, channels_last: bool, save: bool,
    dtypes: tuple, device: torch.device, alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    names = ("x", "weights", "y", "index")
    shared = _Cells(shape, samples, kernel_size, pool_size, channels_last, dtypes, device)
    return shared.over_cells(conv_pool_kernel, names, names, SAVE=save)


@functools.lru_cache(maxsize=512)
def backward_plan(
    shape: Sequence[int], samples: int, grad_samples: int, kernel_size: int, pool_size: int, channels_last: bool,
    need_params: bool, dtypes: tuple, device: torch.device, alignment: tuple,
) -> tuple[tuple[Launch, ...], int]:  # fmt: skip
    """Return the launches that these gradients need, and the parts, each of which has a row of scratch."""
    names = ("grad", "index", "x", "weights", "scratch", "grad_x", "grad_params")
    launches, parts = [], 0
    if grad_samples:
        shared = _Cells(shape, grad_samples, kernel_size, pool_size, channels_last, dtypes, device)
        launches.append(shared.over_cells(conv_pool_input_kernel, ("grad", "index", "weights", "grad_x"), names))
    if need_params:
        shared = _Cells(shape, samples, kernel_size, pool_size, channels_last, dtypes, device)
        launch, parts = shared.over_samples(("grad", "index", "x", "scratch"), names)
        numel = shape[1] * (kernel_size**2 + 1)
        block, rows = 64, tiles.fit(32, parts)[0]
        total = Launch(
            batch_sum.batch_sum_kernel, lambda _: (-(-numel // block), 1, 1), ("scratch", "grad_params"), names,
            {"B": parts, "SCRATCH": numel, "GRADS": numel}, {"BB": rows, "BLOCK": block}, 4, context=shared.context,
        )  # fmt: skip
        launches += [launch, total]
    return tuple(launches), parts


def forward(
    x: Tensor, channels_last: bool, weight: Tensor, bias: Tensor, pool_size: int, save: bool
) -> tuple[Tensor, Tensor]:
    """Return the pooled convolution of x (B, C, H, W), in the dtype of the weight, and where the maxima are: empty
    unless it is to be saved.

    The samples of x lie densely, in the format that both results have. Kernels are (C, 1, K, K) with odd K.
    """
    batch, channels, height, width = x.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = batch, channels, -(-height // pool_size), -(-width // pool_size)
    y = torch.empty(shape, dtype=weight.dtype, device=x.device, memory_format=layout)
    index = torch.empty_like(y, dtype=torch.uint8) if save else y.new_empty(0, dtype=torch.uint8)
    packed = torch.cat([weight.flatten(1).mT, bias[None]])
    launch = forward_plan(
        x.shape, x.stride(0), weight.shape[2], pool_size, channels_last, save, (x.dtype, weight.dtype), x.device,
        aligned(x),
    )  # fmt: skip
    run((launch,), (x, packed, y, index))
    return y, index


def backward(
    grad: Tensor, index: Tensor, x: Tensor, channels_last: bool, weight: Tensor, pool_size: int,
    grad_x: Tensor | None, need_params: bool,
) -> Tensor:  # fmt: skip
    """Add the gradient of x to grad_x, unless that is None; return those of the weight and then the bias, flat; empty
    unless needed.

    grad and index are dense in the format of x, and so are the samples of grad_x.
    """
    kernel_size = weight.shape[2]
    packed = weight.flatten(1).mT.contiguous()
    others = x if grad_x is None else grad_x  # stands in
    launches, parts = backward_plan(
        x.shape, x.stride(0), 0 if grad_x is None else grad_x.stride(0), kernel_size, pool_size, channels_last,
        need_params, (x.dtype, grad.dtype, weight.dtype, others.dtype), x.device,
        aligned(grad, index, x, packed, others),
    )  # fmt: skip
    numel = x.shape[1] * (kernel_size**2 + 1) if need_params else 0
    scratch = x.new_empty((parts, numel), dtype=torch.float32)
    grad_params = weight.new_empty(numel)
    run(launches, (grad, index, x, packed, scratch, others, grad_params))
    return grad_params
