"""The gate of one axis: depthwise convolutions of four sizes, group normalisation, sigmoid or softmax.

A tile is [NG, BG, BL]: groups, channels of a group, the whole length of the axis.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import sample
from .layout import EPSILON, kernel, mean_parts, on_axis, saved_axes


@triton.jit
def by_group(g, values):
    """Each group's own of four pointers or numbers: [NG, 1]."""
    return tl.where(g == 0, values[0], tl.where(g == 1, values[1], tl.where(g == 2, values[2], values[3])))


@triton.jit
def tap_weights(centre, radius, inside, shift):
    """Weights [NG, BG] of each group's tap at this distance from its centre; 0 beyond its kernel."""
    tap = inside & (shift <= radius) & (shift >= -radius)
    return tl.load(centre + shift, mask=tap, other=0.0).to(tl.float32)


@triton.jit
def convolve(
    mean, weights, biases, g, cg, C, L,
    NHWC: tl.constexpr, KERNELS: tl.constexpr, KMAX: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Convolve the axis mean of channels [NG, BG]: [NG, BG, BL]."""
    inside = cg < C // 4  # [1, BG]
    c = g * (C // 4) + cg  # [NG, BG]
    l = tl.arange(0, BL)
    size = by_group(g, KERNELS)
    centre = by_group(g, weights) + cg * size + size // 2
    z = tl.load(by_group(g, biases) + cg, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    z = z + tl.zeros([1, 1, BL], tl.float32)
    for shift in range(-(KMAX // 2), KMAX // 2 + 1):
        at = l + shift
        mask = inside[:, :, None] & ((at >= 0) & (at < L))[None, None, :]
        value = tl.load(mean + on_axis(c[:, :, None], at[None, None, :], C, L, NHWC), mask=mask, other=0.0)
        z += tap_weights(centre, size // 2, inside, shift)[:, :, None] * value
    return z


@triton.jit
def group_sum(tile):
    """Sum [NG, BG, BL] to [NG, 1, 1]."""
    return tl.sum(tl.sum(tile, axis=2, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
def gate_values(logits, inside, SOFTMAX: tl.constexpr):
    """Gate of logits [NG, BG, BL]: sigmoid, or softmax over the length."""
    if SOFTMAX:
        top = tl.max(tl.where(inside, logits, float("-inf")), axis=2, keep_dims=True)
        powers = tl.where(inside, tl.exp(logits - tl.where(inside, top, 0.0)), 0.0)
        total = tl.sum(powers, axis=2, keep_dims=True)
        return powers / tl.where(total > 0.0, total, 1.0)
    return tl.sigmoid(logits)


@triton.jit
def axis_gates(
    mean, gate, statistics, norm, weights, biases, g0, C, L,
    NHWC: tl.constexpr, SOFTMAX: tl.constexpr, KERNELS: tl.constexpr, KMAX: tl.constexpr,
    TILES: tl.constexpr, NG: tl.constexpr, BG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Gates of the groups from g0 on, and their statistics."""
    g = g0 + tl.arange(0, NG)[:, None]  # [NG, 1]
    l = tl.arange(0, BL)[None, None, :]
    size = C // 4
    cg = tl.arange(0, BG)[None, :]  # [1, BG]
    count = size * L
    if TILES == 1:
        mask = (cg < size)[:, :, None] & (l < L)
        z = convolve(mean, weights, biases, g, cg, C, L, NHWC, KERNELS, KMAX, BL)
        average = group_sum(tl.where(mask, z, 0.0)) / count
        z -= average
        squares = group_sum(tl.where(mask, z * z, 0.0))
    else:
        total = tl.zeros([NG, 1, 1], tl.float32)
        for c0 in range(0, size, BG):
            mask = (c0 + cg < size)[:, :, None] & (l < L)
            z = convolve(mean, weights, biases, g, c0 + cg, C, L, NHWC, KERNELS, KMAX, BL)
            total += group_sum(tl.where(mask, z, 0.0))
        average = total / count
        squares = tl.zeros([NG, 1, 1], tl.float32)
        for c0 in range(0, size, BG):
            mask = (c0 + cg < size)[:, :, None] & (l < L)
            z = convolve(mean, weights, biases, g, c0 + cg, C, L, NHWC, KERNELS, KMAX, BL)
            squares += group_sum(tl.where(mask, (z - average) * (z - average), 0.0))
    scale = 1.0 / tl.sqrt(squares / count + EPSILON)  # [NG, 1, 1]
    at = 2 * g[:, :, None]
    tl.store(statistics + at, average)
    tl.store(statistics + at + 1, scale)
    for c0 in range(0, size, BG):
        inside = c0 + cg < size
        c = g * size + c0 + cg
        mask = inside[:, :, None] & (l < L)
        if TILES > 1:
            z = convolve(mean, weights, biases, g, c0 + cg, C, L, NHWC, KERNELS, KMAX, BL)
            z -= average
        weight = tl.load(norm[0] + c, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(norm[1] + c, mask=inside, other=0.0).to(tl.float32)
        values = gate_values(z * scale * weight[:, :, None] + bias[:, :, None], mask, SOFTMAX)
        tl.store(gate + on_axis(c[:, :, None], l, C, L, NHWC), values, mask=mask)


@triton.jit
def sum_parts(parts, mean, g, C, L, PARTS, NHWC: tl.constexpr, TILES: tl.constexpr, BG: tl.constexpr, BL: tl.constexpr):
    """Sum the parts of one group's mean."""
    l = tl.arange(0, BL)[None, :]
    for tile in range(TILES):
        cg = tile * BG + tl.arange(0, BG)[:, None]
        at = on_axis(g * (C // 4) + cg, l, C, L, NHWC)
        mask = (cg < C // 4) & (l < L)
        total = tl.zeros([BG, BL], tl.float32)
        for part in range(PARTS):
            total += tl.load(parts + part * C * L + at, mask=mask, other=0.0)
        tl.store(mean + at, total, mask=mask)


@kernel
def axis_gate_kernel(
    out, saved, axes, C, H, W, PARTS, SAVED,
    NHWC: tl.constexpr, SPLIT: tl.constexpr, SOFTMAX: tl.constexpr, KERNELS: tl.constexpr, KMAX: tl.constexpr,
    TILES: tl.constexpr, BG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Grid (samples, groups, axes)."""
    begin()
    saved = sample(saved, tl.program_id(0), SAVED)
    a_h, a_w, mean_h, mean_w = saved_axes(saved, C, H, W)
    g = tl.program_id(1)
    if tl.program_id(2) == 0:
        if SPLIT:
            sum_parts(mean_parts(out, tl.program_id(0), C, H, W), mean_h, g, C, H, PARTS, NHWC, TILES, BG, BL)
            tl.debug_barrier()
        mean, gate, statistics, L, norm = mean_h, a_h, saved, H, axes[8:10]
    else:
        mean, gate, statistics, L, norm = mean_w, a_w, saved + 8, W, axes[10:12]
    axis_gates(
        mean, gate, statistics, norm, axes[:4], axes[4:8], g, C, L,
        NHWC, SOFTMAX, KERNELS, KMAX, TILES, 1, BG, BL,
    )  # fmt: skip
