"""Attention within parts in the flash manner: q, k and v are read where they lie, an online softmax keeps none of the
scores, and backward forms them again. Plans and calls of `partition_attention_forward` and
`partition_attention_backward`.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import tuning
from ..common.launch import Grid, Launch, processors, product_precision
from ..common.run import run
from ..common.tiles import power
from .partition_attention_backward import key_value_gradient_kernel, query_gradient_kernel
from .partition_attention_forward import LOG2_E, attention_forward_kernel

FORWARD = ("q", "k", "v", "out", "logsumexp")
BACKWARD = ("q", "k", "v", "out", "grad_out", "logsumexp", "delta", "grad_q", "grad_k", "grad_v")
# (float32, backward): up to a head size, the rows of a program, rows at a time, warps and stages: what fits into 99 KiB
# and, except float32 beyond 32, into registers
BLOCKS = {
    (False, False): {32: (128, 64, 4, 3), 64: (128, 64, 8, 3), 128: (128, 32, 8, 3)},
    (False, True): {32: (64, 64, 4, 2), 64: (64, 32, 4, 2), 128: (32, 32, 8, 2)},
    (True, False): {32: (64, 32, 4, 2), 64: (64, 16, 4, 1), 128: (16, 16, 8, 1)},
    (True, True): {32: (64, 16, 4, 1), 64: (16, 32, 4, 1), 128: (16, 16, 8, 1)},
}


class Plan:
    """The launches of one signature: `forward` and `backward`."""

    def __init__(
        self, shape: tuple[int, int, int], strides: tuple[int, ...], num_parts: int, num_heads: int,
        dtype: torch.dtype, precision: str, device: torch.device,
    ):  # fmt: skip
        batch, tokens, channels = shape
        self.head_dim, self.length, self.dtype = channels // num_heads, tokens // num_parts, dtype
        self.sequences = batch * num_parts * num_heads
        self.processors = processors(device)
        self.context = dtype, precision, device
        names = ("QB", "QN", "KB", "KN", "VB", "VN")
        self.sizes = {"B": batch, "LENGTH": self.length, "PARTS": num_parts, "HEADS": num_heads}
        self.sizes |= dict(zip(names, strides, strict=True))
        self.constants = {
            "SCALE": self.head_dim**-0.5 * LOG2_E.value, "D": self.head_dim, "ALIGN": 16 // dtype.itemsize,
            "PRECISION": precision,
        }  # fmt: skip
        self.dtypes = dict.fromkeys({*FORWARD, *BACKWARD}, dtype)
        self.dtypes |= dict.fromkeys(("logsumexp", "delta"), torch.float32)
        self.forward = (self._launch(attention_forward_kernel, FORWARD, "BM"),)
        self.backward = (
            self._launch(query_gradient_kernel, BACKWARD, "BM"),
            self._launch(key_value_gradient_kernel, BACKWARD, "BN"),
        )

    def _launch(self, kernel: Any, names: Sequence[str], rows: str) -> Launch:
        """Return a launch whose programs own blocks of `rows`."""
        own, other, warps, stages = self._blocks(backward=names is BACKWARD)
        across = "BN" if rows == "BM" else "BM"
        mends = {"MEND": self.dtype is not torch.float32 and self.head_dim <= 64}  # beyond, registers do not suffice
        extra = mends if kernel is query_gradient_kernel else {}
        constants = {**self.constants, **extra, "BM": 0, "BN": 0, rows: own, across: other}
        others = [{rows: size, across: other} for size in (own // 2, 2 * own) if 16 <= size <= 128]

        def grid(constants: Mapping[str, Any]) -> Grid:
            return (self.sequences * -(-self.length // constants[rows]), 1, 1)

        parameters = inspect.signature(kernel.fn).parameters
        tensors = [name for name in parameters if name in names]
        return tuning.apply(
            Launch(kernel, grid, tensors, names, self.sizes, constants, warps, others, self.context, stages)
        )

    def _blocks(self, *, backward: bool) -> tuple[int, int, int, int]:
        """Return the rows that a program owns, those that it takes at a time, its warps and its stages."""
        choices = BLOCKS[self.dtype is torch.float32, backward]
        own, other, warps, stages = next(blocks for most, blocks in choices.items() if self.head_dim <= most)
        while own > 16 and own // 2 >= self.length:
            own //= 2
        while own > 64 and self.sequences * -(-self.length // own) < self.processors:  # below, Hopper's products end
            own //= 2
        return own, min(other, max(16, power(self.length))), warps, stages


@functools.lru_cache(maxsize=512)
def plan(shape, strides, num_parts, num_heads, dtype, precision, device) -> Plan:
    """Return the plan of one signature."""
    return Plan(shape, strides, num_parts, num_heads, dtype, precision, device)


def _prepare(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> Plan:
    strides = (q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1))
    return plan(q.shape, strides, num_parts, num_heads, q.dtype, product_precision(q.dtype), q.device)


def forward(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return (out, logsumexp) for q, k and v (B, N, heads * d), whose tokens lie as aligned rows."""
    ready = _prepare(q, k, v, num_parts, num_heads)
    out = q.new_empty(q.shape)
    logsumexp = q.new_empty((q.shape[0], num_parts * num_heads, ready.length), dtype=torch.float32)
    run(ready.forward, (q, k, v, out, logsumexp))
    return out, logsumexp


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, num_parts: int, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, contiguous."""
    ready = _prepare(q, k, v, num_parts, num_heads)
    grads = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
    run(ready.backward, (q, k, v, out, grad_out, logsumexp, torch.empty_like(logsumexp), *grads))
    return grads
