"""Several depthwise convolutions from one read of x (B, C, H, W), and their gradients: plans and calls of
`depthwise_forward` and `depthwise_backward`.

The memory formats differ in which of a block's channels and places has neighbours in memory. The taps, (sum of K * K,
C), are packed with neighbouring channels, and below them the biases.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import batch_sum, tiles, tuning
from .depthwise_backward import depthwise_input_kernel, depthwise_params_kernel
from .depthwise_forward import depthwise_kernel
from .launch import Launch, aligned, processors
from .run import run

ROWS = 4  # of a place, at least
WARPS = 8  # per multiprocessor, which leaves them the registers they need
CACHED = 1 << 15  # bytes that a warp reads again for each column of taps
PLACES = 64  # of a block in planes: of a thread 2 columns of one channel, which share its taps
THREADS = 128  # of a block at channels_last
Convolutions = tuple[tuple[int, int], ...]  # of each: size of its kernel, stride


@functools.lru_cache(maxsize=512)
def forward_plan(
    convolutions: Convolutions, shape: Sequence[int], channels_last: bool, dtypes: tuple, device: torch.device,
    alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    tensors = ("x", "weights", "ys")
    return tuning.apply(_over_places(depthwise_kernel, tensors, convolutions, shape, channels_last, dtypes, device))


@functools.lru_cache(maxsize=512)
def backward_plan(
    convolutions: Convolutions, shape: Sequence[int], channels_last: bool, dtypes: tuple, need_x: bool,
    need_params: bool, device: torch.device, alignment: tuple,
) -> tuple[tuple[Launch, ...], int]:  # fmt: skip
    """Return the launches that these gradients need, and the parts, each of which has a row of scratch."""
    names = ("grads", "x", "weights", "scratch", "grad_x", "grad_params")
    launches, parts = [], 0
    if need_x:
        tensors = ("grads", "weights", "grad_x")
        launches.append(
            _over_places(depthwise_input_kernel, tensors, convolutions, shape, channels_last, dtypes, device, names)
        )
    if need_params:
        batch, channels, height, width = shape
        constants, num_warps = _constants(convolutions, shape, channels_last, dtypes[0])
        blocks = batch * _blocks(constants, height, width)
        columns = -(-channels // constants["BC"])
        size = constants["BC"] * constants["BF"] * constants["Q"] * (1 + len(convolutions)) * dtypes[0].itemsize
        most = blocks * columns * num_warps // (WARPS * processors(device))
        constants["PART"] = max(1, min(CACHED * num_warps // size, most))
        parts = -(-blocks // constants["PART"])
        sizes = {"B": batch, "C": channels, "H": height, "W": width}
        launches.append(
            Launch(
                depthwise_params_kernel, lambda _: (parts * columns, 1, 1), ("grads", "x", "scratch"), names,
                sizes, constants, num_warps, context=(device, *dtypes),
            )
        )  # fmt: skip
        numel = channels * sum(size * size + 1 for size, _ in convolutions)
        block, rows = 64, tiles.fit(32, parts)[0]
        launches.append(
            Launch(
                batch_sum.batch_sum_kernel, lambda _: (-(-numel // block), 1, 1), ("scratch", "grad_params"), names,
                {"B": parts, "SCRATCH": numel, "GRADS": numel}, {"BB": rows, "BLOCK": block}, 4,
                context=(device, *dtypes),
            )
        )  # fmt: skip
    return tuple(map(tuning.apply, launches)), parts


def _over_places(
    function: Any, tensors: Sequence[str], convolutions: Convolutions, shape: Sequence[int], channels_last: bool,
    dtypes: tuple, device: torch.device, names: Sequence[str] = (),
) -> Launch:  # fmt: skip
    """Return a launch whose programs write what belongs to blocks of channels and parts of a sample's places."""
    batch, channels, height, width = shape
    elements = 4 if function is depthwise_kernel else 2  # as registers allow
    constants, num_warps = _constants(convolutions, shape, channels_last, dtypes[0], elements)
    blocks = _blocks(constants, height, width)
    columns = -(-channels // constants["BC"])
    most = height // max(1, constants["LARGEST"] - 1)  # a part has as many rows as it reads besides
    parts = max(1, min(blocks, most, WARPS * processors(device) // (batch * columns * num_warps)))
    parts = -(-blocks // -(-blocks // parts))
    return Launch(
        function, lambda _: (batch * columns, parts, 1), tensors, names or tensors,
        {"C": channels, "H": height, "W": width}, constants, num_warps, context=(device, *dtypes),
    )  # fmt: skip


def _blocks(constants: Mapping[str, Any], height: int, width: int) -> int:
    """Return the blocks of places in one map."""
    return -(-(-(-height // constants["Q"]) * width) // constants["BF"])


def _constants(
    convolutions: Convolutions, shape: Sequence[int], channels_last: bool, dtype: torch.dtype, elements: int = 2
) -> tuple[dict[str, Any], int]:
    """Return the constants of a launch, and its warps; a thread has so many channels where they are neighbours."""
    _, channels, height, width = shape
    kernels, strides = zip(*convolutions, strict=True)
    rows = max(ROWS, *strides)
    count = -(-height // rows) * width
    if channels_last:
        bc, bf = tiles.fit(THREADS * elements, min(channels, tiles.SEGMENT // dtype.itemsize), count)
        num_warps = max(1, bc * bf // (32 * elements))
    else:
        bf, bc = tiles.fit(PLACES, count, channels)
        num_warps = 1
    constants = {
        "J": len(convolutions),
        "KERNELS": kernels,
        "STRIDES": strides,
        "LARGEST": max(kernels),
        "NHWC": channels_last,
        "ALIGN": tiles.alignment(channels) if channels_last else 1,
        "Q": rows,
        "BC": bc,
        "BF": bf,
    }
    return constants, num_warps


def _convolutions(weights: Sequence[Tensor], strides: Sequence[int]) -> Convolutions:
    return tuple((weight.shape[2], stride) for weight, stride in zip(weights, strides, strict=True))


def _packed(*rows: Sequence[Tensor]) -> Tensor:
    """Return weights and biases as rows of C neighbouring channels, one for each tap, one for each bias."""
    return torch.cat([tensor.reshape(tensor.shape[0], -1).mT for tensors in rows for tensor in tensors])


def forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Return depthwise convolutions of a dense x (B, C, H, W), in its format.

    Kernels are (C, 1, K, K) with odd K and padded by K // 2; strides are powers of two.
    """
    batch, channels, height, width = x.shape
    memory_format = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    shapes = [(batch, channels, -(-height // stride), -(-width // stride)) for stride in strides]
    outs = [torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format) for shape in shapes]
    packed = _packed(weights, biases)
    launch = forward_plan(
        _convolutions(weights, strides), x.shape, not x.is_contiguous(), (x.dtype, packed.dtype), x.device, aligned(x)
    )
    run((launch,), (x, packed, tuple(outs)))
    return outs


def backward(
    grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], strides: Sequence[int], need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradient of x, and those of the weights and then the biases, flat; empty where not needed.

    The outputs' gradients lie like the outputs.
    """
    convolutions = _convolutions(weights, strides)
    packed = _packed(weights) if need_x else weights[0]  # not read
    launches, parts = backward_plan(
        convolutions, x.shape, not x.is_contiguous(), (x.dtype, packed.dtype), need_x, need_params, x.device,
        aligned(*grads, x),
    )  # fmt: skip
    numel = x.shape[1] * sum(size * size + 1 for size, _ in convolutions) if need_params else 0
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    scratch = x.new_empty((parts, numel), dtype=torch.float32)
    grad_params = packed.new_empty(numel)
    run(launches, (tuple(grads), x, packed, scratch, grad_x, grad_params))
    return grad_x, grad_params
