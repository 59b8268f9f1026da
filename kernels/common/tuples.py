"""Tuples of tensors and tiles in kernels."""

import triton
import triton.language as tl


@triton.jit
def chosen(values, i, LEVELS: tl.constexpr):
    """Return values[i]."""
    value = values[0]
    for j in tl.static_range(1, LEVELS):
        if i == j:
            value = values[j]
    return value


@triton.jit
def zeros(COUNT: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr):
    """Return so many tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles += (tl.zeros([BC, BF], tl.float32),)
    return tiles
