"""Sum of the samples' parameter gradients, in a fixed order."""

import triton.language as tl

from .chain import begin
from .maps import kernel


@kernel
def batch_sum_kernel(scratch, grad_params, B, SCRATCH, GRADS, BB: tl.constexpr, BLOCK: tl.constexpr):
    """Sum the last GRADS floats of each sample over the B samples; grid (blocks of parameters)."""
    begin()
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BB, BLOCK], tl.float32)
    for b0 in range(0, B, BB):
        b = b0 + tl.arange(0, BB)
        rows = scratch + b.to(tl.int64)[:, None] * SCRATCH + (SCRATCH - GRADS)
        inside = (b < B)[:, None] & (offsets < GRADS)[None, :]
        total += tl.load(rows + offsets[None, :], mask=inside, other=0.0)
    tl.store(grad_params + offsets, tl.sum(total, axis=0), mask=offsets < GRADS)
