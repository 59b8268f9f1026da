"""Where things lie: x in its memory format, and the float32 vectors of a sample in `saved` and `scratch`.

Vectors of an axis, (C, H) and (C, W), follow x's own memory format: C x L where x is contiguous, L x C where it
is channels_last. What is pooled, (N, C) with N = NI * NJ windows, is always N x C.

    saved     statistics of the axes, a_h, a_w, mean_w, mean_h; statistics of the pooled map, gate, value, the
              value at a row's largest score, attention's output less that value, that score, the sum of the
              row's powers, pooled, index of the maximum
    scratch   r_w, d_h, d_w, r_h (PARTS), p_h (NJ), p_w (NI), dg (PARTS), dy, then at its end the sample's
              parameter gradients in the operation's order

A sum over rows that several blocks of columns share has one part per block. Those of mean_h wait in `out`, which
is free until the last pass.

with d_h, d_w the gradients of the axis means and the other names as in `fastattn.reference`.
"""

import functools

import triton
import triton.language as tl

from ..common.maps import sample

# floats, mean and 1 / standard deviation: of 4 groups on 2 axes, of the pooled map
AXIS_STATISTICS = tl.constexpr(16)
POOLED_STATISTICS = tl.constexpr(2)
EPSILON = tl.constexpr(1e-5)

SIZES = ("C", "H", "W", "WH", "WW", "NI", "NJ", "D", "PARTS", "SAVED", "SCRATCH", "ROWS", "GRADS", "B")
# an operation's parameters in their order, as kernels take them: tuples, and what some take alone
AXES = (
    *(f"conv_weight_{i}" for i in range(4)),
    *(f"conv_bias_{i}" for i in range(4)),
    *("norm_h_weight", "norm_h_bias", "norm_w_weight", "norm_w_bias"),
)
ATTENTION = ("norm_weight", "norm_bias", "q_weight", "k_weight", "v_weight", "q_bias", "k_bias", "v_bias")
PARAMETERS = ("axes", "attention", "norm_weight")
# compiled once for all sizes, and for parameters of any alignment
kernel = functools.partial(triton.jit, do_not_specialize=SIZES, do_not_specialize_on_alignment=PARAMETERS)


@triton.jit
def on_axis(c, l, C, L, NHWC: tl.constexpr):
    """Offsets of the element l of channel c in the vectors of one axis; c and l broadcast."""
    if NHWC:
        return l * C + c
    return c * L + l


@triton.jit
def saved_axes(saved, C, H, W):
    """Pointers to a_h, a_w, mean_h and mean_w of a sample."""
    a_h = saved + AXIS_STATISTICS
    a_w = a_h + C * H
    mean_w = a_w + C * W
    return a_h, a_w, mean_w + C * W, mean_w


@triton.jit
def mean_parts(out, b, C, H, W):
    """Pointer to a sample's parts of mean_h, in out."""
    return sample(out, b, C * H * W).to(tl.pointer_type(tl.float32))


@triton.jit
def saved_channels(saved, C, H, W, N, SPATIAL: tl.constexpr):
    """Pointers to a sample's statistics of the pooled map, gate, vectors of the attention, pooled and index."""
    statistics = saved
    if SPATIAL:
        statistics += AXIS_STATISTICS + C * (H + W + W + H)
    gate = statistics + POOLED_STATISTICS
    pooled = gate + 6 * C
    index = (pooled + N * C).to(tl.pointer_type(tl.int32))
    return statistics, gate, gate + C, pooled, index


@triton.jit
def scratch_axes(scratch, C, H, W, NI, NJ, PARTS):
    """Pointers to r_h, r_w, d_h, d_w, p_h and p_w of a sample."""
    r_w = scratch
    d_h = r_w + C * W
    d_w = d_h + C * H
    r_h = d_w + C * W
    p_h = r_h + PARTS * C * H
    return r_h, r_w, d_h, d_w, p_h, p_h + NJ * C * H


@triton.jit
def scratch_channels(scratch, C, H, W, NI, NJ, PARTS, SPATIAL: tl.constexpr, MAX: tl.constexpr):
    """Pointers to dg and dy of a sample."""
    dg = scratch
    if SPATIAL:
        dg += C * (W + H + W + PARTS * H)
        if not MAX:
            dg += C * (NJ * H + NI * W)
    return dg, dg + PARTS * C
