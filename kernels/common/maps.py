"""Maps in memory, (B, C, H, W) contiguous or channels_last: where an element lies, and what a program takes."""

import functools

import triton
import triton.language as tl

# compiled once for all sizes
kernel = functools.partial(triton.jit, do_not_specialize=("B", "C", "H", "W", "SCRATCH", "GRADS"))


@triton.jit
def pixels(c, h, w, C, H, W, NHWC: tl.constexpr):
    """Offsets of x[c, h, w] in its sample; c, h and w broadcast."""
    if NHWC:
        return h.to(tl.int64) * (W * C) + (w * C + c)
    return c.to(tl.int64) * (H * W) + (h * W + w)


@triton.jit
def aligned(C, W, NHWC: tl.constexpr, ALIGN: tl.constexpr):
    """Return both sizes, of which the compiler then knows that neighbouring values run over a multiple of ALIGN."""
    if NHWC:
        C = C // ALIGN * ALIGN
    else:
        W = W // ALIGN * ALIGN
    return C, W


@triton.jit
def channel_block(C, BC: tl.constexpr):
    """Sample and first channel of a program, in a grid of samples x blocks of channels."""
    blocks = tl.cdiv(C, BC)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * BC


@triton.jit
def sample(tensor, b, size):
    """Pointer to sample b of a tensor with this many elements per sample."""
    return tensor + b.to(tl.int64) * size
