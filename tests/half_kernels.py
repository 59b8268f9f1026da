"""Kernels that compute in 16 bits, as none of the package's may: what the test of machine code must see."""

import triton
import triton.language as tl


@triton.jit
def adds_kernel(x, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, tl.load(x + i) + tl.load(x + i))


@triton.jit
def sums_kernel(x, N: tl.constexpr):
    tl.store(x, tl.sum(tl.load(x + tl.arange(0, N)), axis=0))


@triton.jit
def widens_kernel(x, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, tl.load(x + i).to(tl.float32) * 2)
