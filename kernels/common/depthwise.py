"""Several depthwise convolutions from one read of x (B, C, H, W), and their gradients.

A thread computes Q rows of a few columns of every output. For each column of taps it loads Q + K - 1 rows of x, K the
largest kernel, once for all taps of all kernels there: with kernels 3, 5, 7 and 11, 26 * Q products of Q + 10 values.

A block is of channels and places: a place is Q rows of one column, and the places of a map are numbered row by row.
The memory formats differ in which of the two has neighbours in memory. The taps, (sum of K * K, C), are packed with
neighbouring channels, and below them the biases.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import batch_sum, tiles, tuning
from .launch import Launch, aligned, padded, processors
from .maps import channel_block, kernel, pixels, sample
from .run import run
from .tuples import zeros

KERNELS = 8  # that one launch takes
ROWS = 4  # of a place, at least
WARPS = 8  # per multiprocessor, which leaves them the registers they need
CACHED = 1 << 15  # bytes that a warp reads again for each column of taps
PLACES = 64  # of a block in planes: of a thread 2 columns of one channel, which share its taps
THREADS = 128  # of a block at channels_last
Convolutions = tuple[tuple[int, int], ...]  # of each: size of its kernel, stride


@triton.jit
def places(c0, f0, C, H, W, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr):
    """Return the channels of a block of places, their first rows and their columns, and which there are.

    Channels are [BC, BF], so that taps lie in registers as x does, but a single one is [1, 1].
    """
    c = c0 + tl.arange(0, BC)[:, None]
    if BC > 1:
        c = tl.broadcast_to(c, [BC, BF])
    f = f0 + tl.arange(0, BF)[None, :]
    h = f // W * Q
    return c, h, f % W, (c < C) & (h < H)


@triton.jit
def part_of_places(H, W, Q: tl.constexpr, BF: tl.constexpr):
    """Return a program's first block of places and the first after its last; the grid's second axis parts a map."""
    blocks = tl.cdiv(tl.cdiv(H, Q) * W, BF)
    part = tl.cdiv(blocks, tl.num_programs(1))
    first = tl.program_id(1) * part
    return first, tl.minimum(first + part, blocks)


@triton.jit
def window(x, c, h, w, here, C, H, W, FIRST: tl.constexpr, COUNT: tl.constexpr, NHWC: tl.constexpr):
    """Return the rows h + FIRST, ... of x in columns w, zeros outside: COUNT tiles [BC, BF]."""
    row = W * C if NHWC else W
    at = x + pixels(c, h, w, C, H, W, NHWC)
    h = tl.where(here & (w >= 0) & (w < W), h, -(1 << 30))  # one comparison a row, which no loop keeps in registers
    rows = ()
    for t in tl.static_range(COUNT):
        inside = (h + (FIRST + t)).to(tl.uint32) < H.to(tl.uint32)
        rows += (tl.load(at + (FIRST + t) * row, mask=inside, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def add_taps(
    sums, rows, weights, c, dv, C, K: tl.constexpr, S: tl.constexpr, LARGEST: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    """Return the sums of one output plus what its kernel makes of the rows of x in a column dv to the right."""
    for u in tl.static_range(K):
        weight = tl.load(weights + (u * K + K // 2 + dv) * C + c, mask=c < C, other=0.0).to(tl.float32)
        more = ()
        for i in tl.static_range(Q // S):
            more += (sums[i] + rows[i * S + u + (LARGEST - K) // 2] * weight,)
        sums = more
    return sums


@kernel
def depthwise_kernel(
    x, weights, y_0, y_1, y_2, y_3, y_4, y_5, y_6, y_7, C, H, W,
    J: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    K4: tl.constexpr, K5: tl.constexpr, K6: tl.constexpr, K7: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr,
    S4: tl.constexpr, S5: tl.constexpr, S6: tl.constexpr, S7: tl.constexpr,
    LARGEST: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the places)."""
    ys = (y_0, y_1, y_2, y_3, y_4, y_5, y_6, y_7)
    kernels: tl.constexpr = (K0, K1, K2, K3, K4, K5, K6, K7)
    strides: tl.constexpr = (S0, S1, S2, S3, S4, S5, S6, S7)
    C = C // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    x = sample(x, b, C * H * W)
    first, end = part_of_places(H, W, Q, BF)
    for block in range(first, end):
        c, h, w, here = places(c0, block * BF, C, H, W, Q, BC, BF)
        biases = weights
        for j in tl.static_range(J):
            biases += kernels[j] * kernels[j] * C
        sums = ()
        for j in tl.static_range(J):
            bias = tl.load(biases + j * C + c, mask=c < C, other=0.0).to(tl.float32)
            outputs = ()
            for _ in tl.static_range(Q // strides[j]):
                outputs += (tl.zeros([BC, BF], tl.float32) + bias,)
            sums += (outputs,)
        for v in range(LARGEST):
            dv = v - LARGEST // 2
            rows = window(x, c, h, w + dv, here, C, H, W, -(LARGEST // 2), Q + LARGEST - 1, NHWC)
            taps = weights
            new = ()
            for j in tl.static_range(J):
                outputs = sums[j]
                if (dv >= -(kernels[j] // 2)) & (dv <= kernels[j] // 2):
                    outputs = add_taps(outputs, rows, taps, c, dv, C, kernels[j], strides[j], LARGEST, Q)
                new += (outputs,)
                taps += kernels[j] * kernels[j] * C
            sums = new
        for j in tl.static_range(J):
            HJ, WJ = tl.cdiv(H, strides[j]), tl.cdiv(W, strides[j])
            row = WJ * C if NHWC else WJ
            at = sample(ys[j], b, C * HJ * WJ) + pixels(c, h // strides[j], w // strides[j], C, HJ, WJ, NHWC)
            for i in tl.static_range(Q // strides[j]):
                mask = here & (h + i * strides[j] < H) & (w % strides[j] == 0)
                tl.store(at + i * row, sums[j][i], mask=mask)


@triton.jit
def add_transposed(sums, rows, weights, c, v, C, K: tl.constexpr, S: tl.constexpr, Q: tl.constexpr):
    """Return the sums of x's gradients plus what a column v of a kernel makes of rows of its output's gradient."""
    for u in tl.static_range(K):
        weight = tl.load(weights + (u * K + v) * C + c, mask=c < C, other=0.0).to(tl.float32)
        more = ()
        for i in tl.static_range(Q):
            if (i + K // 2 - u) % S == 0:
                more += (sums[i] + rows[(i + K // 2 - u) // S + K // 2 // S] * weight,)
            else:
                more += (sums[i],)
        sums = more
    return sums


@kernel
def depthwise_input_kernel(
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, weights, grad_x, C, H, W,
    J: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    K4: tl.constexpr, K5: tl.constexpr, K6: tl.constexpr, K7: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr,
    S4: tl.constexpr, S5: tl.constexpr, S6: tl.constexpr, S7: tl.constexpr,
    LARGEST: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the places)."""
    grads = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    kernels: tl.constexpr = (K0, K1, K2, K3, K4, K5, K6, K7)
    strides: tl.constexpr = (S0, S1, S2, S3, S4, S5, S6, S7)
    C = C // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    first, end = part_of_places(H, W, Q, BF)
    for block in range(first, end):
        c, h, w, here = places(c0, block * BF, C, H, W, Q, BC, BF)
        sums = zeros(Q, BC, BF)
        taps = weights
        for j in tl.static_range(J):
            HJ, WJ = tl.cdiv(H, strides[j]), tl.cdiv(W, strides[j])
            grad = sample(grads[j], b, C * HJ * WJ)
            for v in range(kernels[j]):
                column = w + kernels[j] // 2 - v  # of x at the centre of the kernel
                rows = window(
                    grad, c, h // strides[j], column // strides[j], here & (column % strides[j] == 0), C, HJ, WJ,
                    -(kernels[j] // 2 // strides[j]),
                    (Q - 1 + kernels[j] // 2) // strides[j] + kernels[j] // 2 // strides[j] + 1, NHWC,
                )  # fmt: skip
                sums = add_transposed(sums, rows, taps, c, v, C, kernels[j], strides[j], Q)
            taps += kernels[j] * kernels[j] * C
        at = sample(grad_x, b, C * H * W) + pixels(c, h, w, C, H, W, NHWC)
        row = W * C if NHWC else W
        for i in tl.static_range(Q):
            tl.store(at + i * row, sums[i], mask=here & (h + i < H))


@triton.jit
def gradients(grad, b, c, h, w, here, C, H, W, S: tl.constexpr, Q: tl.constexpr, NHWC: tl.constexpr):
    """Return the gradients of the outputs at a block's places: Q // S tiles [BC, BF]."""
    HJ, WJ = tl.cdiv(H, S), tl.cdiv(W, S)
    here &= w % S == 0
    return window(sample(grad, b, C * HJ * WJ), c, h // S, w // S, here, C, HJ, WJ, 0, Q // S, NHWC)


@triton.jit
def add_products(sums, rows, outputs, K: tl.constexpr, S: tl.constexpr, LARGEST: tl.constexpr, Q: tl.constexpr):
    """Return the sums of the gradients of a column of taps plus its products at a block of places."""
    for i in tl.static_range(Q // S):
        more = ()
        for u in tl.static_range(K):
            more += (sums[u] + rows[i * S + u + (LARGEST - K) // 2] * outputs[i],)
        sums = more
    return sums


@kernel
def depthwise_params_kernel(
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, x,
    scratch,  # [parts, taps and biases of all channels]: weights like (C, K, K), then biases
    B, C, H, W,
    J: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    K4: tl.constexpr, K5: tl.constexpr, K6: tl.constexpr, K7: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr,
    S4: tl.constexpr, S5: tl.constexpr, S6: tl.constexpr, S7: tl.constexpr,
    LARGEST: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Grid (parts of all samples' places x blocks of channels); a part is PART blocks of places."""
    grads = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    kernels: tl.constexpr = (K0, K1, K2, K3, K4, K5, K6, K7)
    strides: tl.constexpr = (S0, S1, S2, S3, S4, S5, S6, S7)
    C = C // ALIGN * ALIGN
    part, c0 = channel_block(C, BC)
    blocks = tl.cdiv(tl.cdiv(H, Q) * W, BF)  # of one sample
    first = part * PART
    end = tl.minimum(first + PART, B * blocks)
    count = 0
    for j in tl.static_range(J):
        count += kernels[j] * kernels[j] + 1
    scratch = sample(scratch, part, count * C)
    channel = c0 + tl.arange(0, BC)
    for v in range(LARGEST):
        dv = v - LARGEST // 2
        sums = ()
        for j in tl.static_range(J):
            sums += (zeros(kernels[j], BC, BF),)
        for block in range(first, end):
            b = block // blocks
            c, h, w, here = places(c0, block % blocks * BF, C, H, W, Q, BC, BF)
            rows = window(
                sample(x, b, C * H * W), c, h, w + dv, here, C, H, W, -(LARGEST // 2), Q + LARGEST - 1, NHWC
            )  # fmt: skip
            new = ()
            for j in tl.static_range(J):
                taps = sums[j]
                if (dv >= -(kernels[j] // 2)) & (dv <= kernels[j] // 2):
                    outputs = gradients(grads[j], b, c, h, w, here, C, H, W, strides[j], Q, NHWC)
                    taps = add_products(taps, rows, outputs, kernels[j], strides[j], LARGEST, Q)
                new += (taps,)
            sums = new
        at = scratch
        for j in tl.static_range(J):
            if (dv >= -(kernels[j] // 2)) & (dv <= kernels[j] // 2):
                for u in tl.static_range(kernels[j]):
                    place = (channel * kernels[j] + u) * kernels[j] + kernels[j] // 2 + dv
                    tl.store(at + place, tl.sum(sums[j][u], axis=1), mask=channel < C)
            at += kernels[j] * kernels[j] * C
    for j in tl.static_range(J):
        total = tl.zeros([BC, BF], tl.float32)
        for block in range(first, end):
            b = block // blocks
            c, h, w, here = places(c0, block % blocks * BF, C, H, W, Q, BC, BF)
            outputs = gradients(grads[j], b, c, h, w, here, C, H, W, strides[j], Q, NHWC)
            for i in tl.static_range(Q // strides[j]):
                total += outputs[i]
        tl.store(scratch + (count - J + j) * C + channel, tl.sum(total, axis=1), mask=channel < C)


@functools.lru_cache(maxsize=512)
def forward_plan(
    convolutions: Convolutions, shape: Sequence[int], channels_last: bool, dtypes: tuple, device: torch.device,
    alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    tensors = ("x", "weights", *(f"y_{i}" for i in range(KERNELS)))
    return tuning.apply(_over_places(depthwise_kernel, tensors, convolutions, shape, channels_last, dtypes, device))


@functools.lru_cache(maxsize=512)
def backward_plan(
    convolutions: Convolutions, shape: Sequence[int], channels_last: bool, dtypes: tuple, need_x: bool,
    need_params: bool, device: torch.device, alignment: tuple,
) -> tuple[tuple[Launch, ...], int]:  # fmt: skip
    """Return the launches that these gradients need, and the parts, each of which has a row of scratch."""
    grads = tuple(f"grad_{i}" for i in range(KERNELS))
    names = (*grads, "x", "weights", "scratch", "grad_x", "grad_params")
    launches, parts = [], 0
    if need_x:
        tensors = (*grads, "weights", "grad_x")
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
                depthwise_params_kernel, lambda _: (parts * columns, 1, 1), (*grads, "x", "scratch"), names,
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
    padded = (*convolutions, *[(1, 1)] * (KERNELS - len(convolutions)))
    rows = max(ROWS, *(stride for _, stride in padded))
    count = -(-height // rows) * width
    if channels_last:
        bc, bf = tiles.fit(THREADS * elements, min(channels, tiles.SEGMENT // dtype.itemsize), count)
        num_warps = max(1, bc * bf // (32 * elements))
    else:
        bf, bc = tiles.fit(PLACES, count, channels)
        num_warps = 1
    constants = {"J": len(convolutions)}
    constants |= {f"K{j}": size for j, (size, _) in enumerate(padded)}
    constants |= {f"S{j}": stride for j, (_, stride) in enumerate(padded)}
    constants |= {
        "LARGEST": max(size for size, _ in convolutions),
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
    """Return at most 8 depthwise convolutions of a dense x (B, C, H, W), in its format.

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
    run((launch,), (x, packed, *padded(outs, KERNELS)))
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
    run(launches, (*padded(grads, KERNELS), x, packed, scratch, grad_x, grad_params))
    return grad_x, grad_params
