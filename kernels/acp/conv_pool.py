"""Depthwise convolution and max pooling of a map (B, C, H, W) in one pass, and its gradients: the convolution's output
is not stored.

A block is of channels and cells: a cell is a window of the pooling, S x S pixels, of which its thread forms R rows at a
time from R + K - 1 rows of x in each column that the kernel reaches. The cells of a map are numbered row by row. What
backward needs of a window is the place of its maximum, i * S + j in a byte: the first of equal ones, the last NaN.

Samples lie XB elements apart, so that the grid of tokens behind prefix tokens is a map. Taps, (K * K, C), and below
them the bias are packed with neighbouring channels.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import batch_sum, tiles, tuning
from ..common.depthwise import part_of_places, window
from ..common.launch import Grid, Launch, aligned, processors
from ..common.maps import channel_block, pixels, sample
from ..common.run import run
from ..common.tuples import zeros

WINDOW = 16  # the largest, whose places a byte holds
SUMS = 9  # pixels of a window that a thread forms at a time, at most
WARPS, PARAMS_WARPS = 24, 8  # per multiprocessor, as registers allow
HALO = 8  # a part has at least so many times the rows that it reads besides, unless multiprocessors are left over
CACHED = 1 << 15  # bytes that a warp reads again for each column of taps
kernel = functools.partial(triton.jit, do_not_specialize=("B", "C", "H", "W", "XB"))


@triton.jit
def cells(block, c0, C, H, W, S: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr):
    """Return the channels of a block of cells, their rows and columns, and which there are: all but rows [BC, BF]."""
    c = tl.broadcast_to(c0 + tl.arange(0, BC)[:, None], [BC, BF])
    f = block * BF + tl.arange(0, BF)[None, :]
    columns = tl.cdiv(W, S)
    return c, f // columns, f % columns, (c < C) & (f < tl.cdiv(H, S) * columns)


@triton.jit
def tap(weights, u, v, c, C, K: tl.constexpr):
    """Return a tap of the kernel for each channel, zero beyond its columns."""
    inside = (c < C) & (v >= 0) & (v < K)
    return tl.load(weights + (u * K + v) * C + c, mask=inside, other=0.0).to(tl.float32)


@kernel
def conv_pool_kernel(
    x,
    weights,
    y,  # [B, C, ceil(H / S), ceil(W / S)]
    index,  # the same of bytes
    C, H, W, XB,
    K: tl.constexpr, S: tl.constexpr, R: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, SAVE: tl.constexpr,
    BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the cells)."""
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    x = sample(x, b, XB)
    HP, WP = tl.cdiv(H, S), tl.cdiv(W, S)
    y, index = sample(y, b, C * HP * WP), sample(index, b, C * HP * WP)
    first, end = part_of_places(HP, WP, 1, BF)
    for block in range(first, end):
        c, row, column, here = cells(block, c0, C, H, W, S, BC, BF)
        most = tl.full([BC, BF], float("-inf"), tl.float32)
        place = tl.zeros([BC, BF], tl.int32)
        for i0 in range(0, S, R):
            sums = zeros(R * S, BC, BF)
            h = row * S + i0
            for q in range(S + K - 1):
                rows = window(x, c, h, column * S + q - K // 2, here, C, H, W, -(K // 2), R + K - 1, NHWC)
                for u in tl.static_range(K):
                    more = ()
                    for j in tl.static_range(S):
                        weight = tap(weights, u, q - j, c, C, K)
                        for i in tl.static_range(R):
                            more += (sums[j * R + i] + rows[i + u] * weight,)
                    sums = more
            for i in tl.static_range(R):
                for j in tl.static_range(S):
                    value = sums[j * R + i]
                    better = (h + i < H) & (column * S + j < W) & ((value > most) | (value != value))
                    most = tl.where(better, value, most)
                    place = tl.where(better, (i0 + i) * S + j, place)
        most += tl.load(weights + K * K * C + c, mask=c < C, other=0.0).to(tl.float32)
        at = pixels(c, row, column, C, HP, WP, NHWC)
        tl.store(y + at, most, mask=here)
        if SAVE:
            tl.store(index + at, place.to(tl.uint8), mask=here)


@triton.jit
def maxima(
    grad, index, c, row, column, here, i, j, C, HP, WP, K: tl.constexpr, S: tl.constexpr, NHWC: tl.constexpr
):  # fmt: skip
    """Return the gradients of the convolution's outputs, i rows below and j columns right of the windows' first."""
    down, right = (i + K * S) // S - K, (j + K * S) // S - K  # windows
    row, column = row + down, column + right
    inside = here & (row >= 0) & (row < HP) & (column >= 0) & (column < WP)
    at = pixels(c, row, column, C, HP, WP, NHWC)
    value = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    place = tl.load(index + at, mask=inside, other=0).to(tl.int32)
    return tl.where(place == (i - down * S) * S + j - right * S, value, 0.0)


@kernel
def conv_pool_input_kernel(
    grad, index, weights,
    grad_x,  # holds what is added
    C, H, W, XB,
    K: tl.constexpr, S: tl.constexpr, R: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
    BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Add the gradient of x; grid (samples x blocks of channels, parts of the cells)."""
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    grad_x = sample(grad_x, b, XB)
    HP, WP = tl.cdiv(H, S), tl.cdiv(W, S)
    grad, index = sample(grad, b, C * HP * WP), sample(index, b, C * HP * WP)
    first, end = part_of_places(HP, WP, 1, BF)
    for block in range(first, end):
        c, row, column, here = cells(block, c0, C, H, W, S, BC, BF)
        for i0 in range(0, S, R):
            sums = zeros(R * S, BC, BF)
            for q in range(S + K - 1):
                rows = ()
                for t in tl.static_range(R + K - 1):
                    at = i0 + t - K // 2
                    rows += (maxima(grad, index, c, row, column, here, at, q - K // 2, C, HP, WP, K, S, NHWC),)
                for u in tl.static_range(K):
                    more = ()
                    for j in tl.static_range(S):
                        weight = tap(weights, u, j - q + K - 1, c, C, K)
                        for i in tl.static_range(R):
                            more += (sums[j * R + i] + rows[i - u + K - 1] * weight,)
                    sums = more
            for i in tl.static_range(R):
                for j in tl.static_range(S):
                    h, w = row * S + i0 + i, column * S + j
                    inside = here & (h < H) & (w < W)
                    at = grad_x + pixels(c, h, w, C, H, W, NHWC)
                    tl.store(at, sums[j * R + i] + tl.load(at, mask=inside, other=0.0).to(tl.float32), mask=inside)


@kernel
def conv_pool_params_kernel(
    grad, index, x,
    scratch,  # [parts, C * K * K + C]: weights like (C, K, K), then biases
    B, C, H, W, XB,
    K: tl.constexpr, S: tl.constexpr, R: tl.constexpr, V: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
    PART: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (parts of all samples' cells x blocks of channels); a part is PART blocks of cells, read again for every V
    columns of taps."""
    C, XB = C // ALIGN * ALIGN, XB // ALIGN * ALIGN
    part, c0 = channel_block(C, BC)
    HP, WP = tl.cdiv(H, S), tl.cdiv(W, S)
    blocks = tl.cdiv(HP * WP, BF)  # of one sample
    first = part * PART
    end = tl.minimum(first + PART, B * blocks)
    scratch = sample(scratch, part, C * (K * K + 1))
    channel = c0 + tl.arange(0, BC)
    for v0 in range(0, K, V):
        sums = zeros(K * V, BC, BF)
        total = tl.zeros([BC, BF], tl.float32)
        for block in range(first, end):
            b = block // blocks
            c, row, column, here = cells(block % blocks, c0, C, H, W, S, BC, BF)
            at = pixels(c, row, column, C, HP, WP, NHWC)
            g = tl.load(sample(grad, b, C * HP * WP) + at, mask=here, other=0.0).to(tl.float32)
            place = tl.load(sample(index, b, C * HP * WP) + at, mask=here, other=0).to(tl.int32)
            for i0 in range(0, S, R):
                for j in tl.static_range(S):
                    given = ()
                    for i in tl.static_range(R):
                        given += (tl.where(place == (i0 + i) * S + j, g, 0.0),)
                    more = ()
                    for v in tl.static_range(V):
                        w = column * S + v0 + (j + v - K // 2)
                        rows = window(sample(x, b, XB), c, row * S + i0, w, here, C, H, W, -(K // 2), R + K - 1, NHWC)
                        for u in tl.static_range(K):
                            tap_sum = sums[v * K + u]
                            for i in tl.static_range(R):
                                tap_sum += rows[i + u] * given[i]
                            more += (tap_sum,)
                    sums = more
            total += g
        for v in tl.static_range(V):
            for u in tl.static_range(K):
                at = scratch + (channel * K + u) * K + v0 + v
                tl.store(at, tl.sum(sums[v * K + u], axis=1), mask=channel < C)
        tl.store(scratch + C * K * K + channel, tl.sum(total, axis=1), mask=channel < C)


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
