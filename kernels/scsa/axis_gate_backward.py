"""Backward of `axis_gate`: from the sums that `gated_gather` took to the gradients of the axis means.

Tiles are those of `axis_gate`.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import pixels, sample
from .axis_gate import by_group, convolve, gate_values, group_sum, tap_weights
from .channel_attention_backward import pooled_gradients
from .layout import kernel, on_axis, saved_axes, saved_channels, scratch_axes, scratch_channels


@triton.jit
def gate_gradient(
    x, r, p, a_h, a_w, gate, dy, index, g, cg, C, H, W, WH, WW, NI, NJ, PARTS,
    ROWS: tl.constexpr, NHWC: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Gradient [NG, BG, BL] of a_h (ROWS) or a_w: g * r, and dy times the window sums, or where the maxima are."""
    L = H if ROWS else W
    LENGTH = WH if ROWS else WW
    inside = (cg < C // 4)[:, :, None]
    c = (g * (C // 4) + cg)[:, :, None]
    l = tl.arange(0, BL)[None, None, :]
    mask = inside & (l < L)
    at = on_axis(c, l, C, L, NHWC)
    total = tl.zeros(at.shape, tl.float32)
    for part in range(PARTS):
        total += tl.load(r + part * C * L + at, mask=mask, other=0.0)
    if CHANNEL:
        total *= tl.load(gate + c, mask=inside, other=0.0)
        pooled = mask & (l < (NI if ROWS else NJ) * LENGTH)
        for n in range(NJ if ROWS else NI):
            if ROWS:
                window = l // LENGTH * NJ + n
            else:
                window = n * NJ + l // LENGTH
            gradient = tl.load(dy + window * C + c, mask=pooled, other=0.0)
            if MAX:
                place = tl.load(index + window * C + c, mask=pooled, other=0)
                h, w = place // W, place % W
                value = tl.load(x + pixels(c, h, w, C, H, W, NHWC), mask=pooled, other=0.0).to(tl.float32)
                if ROWS:
                    value *= tl.load(a_w + on_axis(c, w, C, W, NHWC), mask=pooled, other=0.0)
                    total += tl.where(h == l, gradient * value, 0.0)
                else:
                    value *= tl.load(a_h + on_axis(c, h, C, H, NHWC), mask=pooled, other=0.0)
                    total += tl.where(w == l, gradient * value, 0.0)
            else:
                total += gradient * tl.load(p + n * C * L + at, mask=pooled, other=0.0)
    return total


@triton.jit
def normalised_gradient(
    mean, statistics, da, norm, grads, weights, biases, g, cg, C, L,
    NHWC: tl.constexpr, SOFTMAX: tl.constexpr, KERNELS: tl.constexpr, KMAX: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The normalised convolution and its gradient [NG, BG, BL], and 1 / standard deviation [NG, 1, 1].

    Stores the gradients of the norm's weight and bias.
    """
    inside = cg < C // 4
    c = g * (C // 4) + cg
    mask = inside[:, :, None] & (tl.arange(0, BL)[None, None, :] < L)
    average = tl.load(statistics + 2 * g)[:, :, None]
    scale = tl.load(statistics + 2 * g + 1)[:, :, None]
    z = convolve(mean, weights, biases, g, cg, C, L, NHWC, KERNELS, KMAX, BL)
    z = tl.where(mask, (z - average) * scale, 0.0)
    weight = tl.load(norm[0] + c, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    bias = tl.load(norm[1] + c, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    a = gate_values(z * weight + bias, mask, SOFTMAX)
    if SOFTMAX:
        d = a * (da - tl.sum(tl.where(mask, a * da, 0.0), axis=2, keep_dims=True))
    else:
        d = da * a * (1.0 - a)
    d = tl.where(mask, d, 0.0)
    tl.store(grads + c, tl.sum(d * z, axis=2), mask=inside)
    tl.store(grads + C + c, tl.sum(d, axis=2), mask=inside)
    return z, d * weight, scale


@triton.jit
def convolve_backward(
    mean, d_mean, dz, grads, weights, g, cg, C, L,
    NHWC: tl.constexpr, FIRST: tl.constexpr, KERNELS: tl.constexpr, KMAX: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Gradients of the axis mean and of the convolutions; those are added to unless this axis is the FIRST."""
    size = C // 4
    inside = cg < size
    c = g * size + cg
    l = tl.arange(0, BL)
    kernel_size = by_group(g, KERNELS)
    radius = kernel_size // 2
    centre = by_group(g, weights) + cg * kernel_size + radius
    before = (0, KERNELS[0], KERNELS[0] + KERNELS[1], KERNELS[0] + KERNELS[1] + KERNELS[2])  # taps of a channel
    places = grads + size * by_group(g, before) + cg * kernel_size + radius
    total = tl.zeros(dz.shape, tl.float32)
    for shift in range(-(KMAX // 2), KMAX // 2 + 1):
        ahead = l + shift
        near = inside[:, :, None] & ((ahead >= 0) & (ahead < L))[None, None, :]
        value = tl.load(mean + on_axis(c[:, :, None], ahead[None, None, :], C, L, NHWC), mask=near, other=0.0)
        gradient = tl.sum(dz * value, axis=2)  # [NG, BG]
        tap = inside & (shift <= radius) & (shift >= -radius)
        if not FIRST:
            gradient += tl.load(places + shift, mask=tap, other=0.0)
        tl.store(places + shift, gradient, mask=tap)
        behind = l - shift
        place = tl.minimum(tl.maximum(behind, 0), BL - 1)[None, None, :] + tl.zeros(dz.shape, tl.int32)
        value = tl.where(((behind >= 0) & (behind < L))[None, None, :], tl.gather(dz, place, axis=2), 0.0)
        total += tap_weights(centre, radius, inside, shift)[:, :, None] * value
    gradient = tl.sum(dz, axis=2)
    bias = grads + size * (KERNELS[0] + KERNELS[1] + KERNELS[2] + KERNELS[3]) + c
    if not FIRST:
        gradient += tl.load(bias, mask=inside, other=0.0)
    tl.store(bias, gradient, mask=inside)
    at = on_axis(c[:, :, None], l[None, None, :], C, L, NHWC)
    tl.store(d_mean + at, total, mask=inside[:, :, None] & (l < L)[None, None, :])


@triton.jit
def axis_gate_gradients(
    x, mean, statistics, a_h, a_w, gate, dy, index, r, p, d_mean, grads, norm, norm_grads, weights, biases, g0,
    C, H, W, WH, WW, NI, NJ, PARTS,
    ROWS: tl.constexpr, NHWC: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr, SOFTMAX: tl.constexpr,
    KERNELS: tl.constexpr, KMAX: tl.constexpr,
    TILES: tl.constexpr, NG: tl.constexpr, BG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Backward of the groups from g0 on, along one axis: rows first, which start the convolutions' gradients."""
    g = g0 + tl.arange(0, NG)[:, None]  # [NG, 1]
    cg = tl.arange(0, BG)[None, :]  # [1, BG]
    L = H if ROWS else W
    size = C // 4
    count = size * L
    if TILES == 1:
        da = gate_gradient(
            x, r, p, a_h, a_w, gate, dy, index, g, cg, C, H, W, WH, WW, NI, NJ, PARTS, ROWS, NHWC, CHANNEL, MAX, BL
        )
        z, d, scale = normalised_gradient(
            mean, statistics, da, norm, norm_grads, weights, biases, g, cg, C, L,
            NHWC, SOFTMAX, KERNELS, KMAX, BL,
        )  # fmt: skip
        inside = (cg < size)[:, :, None] & (tl.arange(0, BL)[None, None, :] < L)
        dz = tl.where(inside, scale * (d - group_sum(d) / count - z * (group_sum(d * z) / count)), 0.0)
        convolve_backward(mean, d_mean, dz, grads, weights, g, cg, C, L, NHWC, ROWS, KERNELS, KMAX, BL)
    else:
        first = tl.zeros([NG, 1, 1], tl.float32)
        second = tl.zeros([NG, 1, 1], tl.float32)
        for c0 in range(0, size, BG):
            da = gate_gradient(
                x, r, p, a_h, a_w, gate, dy, index, g, c0 + cg, C, H, W, WH, WW, NI, NJ, PARTS,
                ROWS, NHWC, CHANNEL, MAX, BL,
            )  # fmt: skip
            z, d, scale = normalised_gradient(
                mean, statistics, da, norm, norm_grads, weights, biases, g, c0 + cg, C, L,
                NHWC, SOFTMAX, KERNELS, KMAX, BL,
            )  # fmt: skip
            first += group_sum(d) / count
            second += group_sum(d * z) / count
        for c0 in range(0, size, BG):
            da = gate_gradient(
                x, r, p, a_h, a_w, gate, dy, index, g, c0 + cg, C, H, W, WH, WW, NI, NJ, PARTS,
                ROWS, NHWC, CHANNEL, MAX, BL,
            )  # fmt: skip
            z, d, scale = normalised_gradient(
                mean, statistics, da, norm, norm_grads, weights, biases, g, c0 + cg, C, L,
                NHWC, SOFTMAX, KERNELS, KMAX, BL,
            )  # fmt: skip
            inside = (c0 + cg < size)[:, :, None] & (tl.arange(0, BL)[None, None, :] < L)
            dz = tl.where(inside, scale * (d - first - z * second), 0.0)
            convolve_backward(mean, d_mean, dz, grads, weights, g, c0 + cg, C, L, NHWC, ROWS, KERNELS, KMAX, BL)


@triton.jit
def axes_gradients(
    x, saved, scratch, axes, norm_weight, g0,
    C, H, W, WH, WW, NI, NJ, PARTS, SCRATCH, GRADS,
    NHWC: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr, BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    KERNELS: tl.constexpr, KMAX: tl.constexpr,
    TILES_H: tl.constexpr, TILES_W: tl.constexpr, NG: tl.constexpr,
    BG_H: tl.constexpr, BG_W: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward of both gates of the groups from g0 on; x, saved and scratch are the sample's."""
    a_h, a_w, mean_h, mean_w = saved_axes(saved, C, H, W)
    pooled_statistics, gate, _, pooled, index = saved_channels(saved, C, H, W, NI * NJ, True)
    r_h, r_w, d_h, d_w, p_h, p_w = scratch_axes(scratch, C, H, W, NI, NJ, PARTS)
    _, dy = scratch_channels(scratch, C, H, W, NI, NJ, PARTS, True, MAX)
    grads = scratch + SCRATCH - GRADS
    size = C // 4
    norms = grads + size * (KERNELS[0] + KERNELS[1] + KERNELS[2] + KERNELS[3]) + C
    if CHANNEL:
        area = 1 if MAX else WH * WW
        last = scratch + SCRATCH - (8 if BIAS else 5) * C
        c0, c1 = g0 * size, (g0 + NG) * size
        pooled_gradients(pooled_statistics, pooled, dy, last, norm_weight, c0, c1, C, NI * NJ, area, BLOCK)
        tl.debug_barrier()
    axis_gate_gradients(
        x, mean_h, saved, a_h, a_w, gate, dy, index, r_h, p_h, d_h, grads, axes[8:10], norms,
        axes[:4], axes[4:8], g0, C, H, W, WH, WW, NI, NJ, PARTS,
        True, NHWC, CHANNEL, MAX, SOFTMAX, KERNELS, KMAX, TILES_H, NG, BG_H, BH,
    )  # fmt: skip
    tl.debug_barrier()
    axis_gate_gradients(
        x, mean_w, saved + 8, a_h, a_w, gate, dy, index, r_w, p_w, d_w, grads, axes[10:12],
        norms + 2 * C, axes[:4], axes[4:8], g0, C, H, W, WH, WW, NI, NJ, 1,
        False, NHWC, CHANNEL, MAX, SOFTMAX, KERNELS, KMAX, TILES_W, NG, BG_W, BW,
    )  # fmt: skip


@kernel
def axis_gate_backward_kernel(
    x, saved, scratch, axes, norm_weight, C, H, W, WH, WW, NI, NJ, PARTS, SAVED, SCRATCH, GRADS,
    NHWC: tl.constexpr, CHANNEL: tl.constexpr, MAX: tl.constexpr, BIAS: tl.constexpr, SOFTMAX: tl.constexpr,
    KERNELS: tl.constexpr, KMAX: tl.constexpr,
    TILES_H: tl.constexpr, TILES_W: tl.constexpr,
    BG_H: tl.constexpr, BG_W: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, groups)."""
    begin()
    b = tl.program_id(0)
    axes_gradients(
        sample(x, b, C * H * W), sample(saved, b, SAVED), sample(scratch, b, SCRATCH),
        axes, norm_weight, tl.program_id(1),
        C, H, W, WH, WW, NI, NJ, PARTS, SCRATCH, GRADS,
        NHWC, CHANNEL, MAX, BIAS, SOFTMAX, KERNELS, KMAX, TILES_H, TILES_W, 1, BG_H, BG_W, BH, BW, BLOCK,
    )  # fmt: skip
