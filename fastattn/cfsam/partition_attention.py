"""Partitioned attention: the registered operators `fastattn::partition_attention_{forward,backward}` (Triton), and the
composition of torch's operators that serves the CPU.

q, k, v and out are (B, N, heads * d); token n is in part n % num_parts. `logsumexp`, in base 2, is what backward needs
besides them: (B, num_parts * heads, N // num_parts), float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.registry import Servers, once, register, watched

_SERVERS = Servers("cfsam.partition_attention")


def partition_attention(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int, backend: str) -> Tensor:
    """Attend within parts on a backend, recording a graph only where a gradient is wanted."""
    if backend == "native":
        return compose(q, k, v, num_parts, num_heads)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Recorded.apply(num_parts, num_heads, q, k, v)
    return forward(q, k, v, num_parts, num_heads)[0]


def compose(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> Tensor:
    """Take the parts as further heads of torch's attention: views, no copies.

    float16 becomes float32, which torch's kernel for CPUs takes several times less long over.
    """
    if q.dtype is torch.float16:
        return compose(q.float(), k.float(), v.float(), num_parts, num_heads).half()
    batch, tokens, channels = q.shape
    heads = (tokens // num_parts, num_parts * num_heads, channels // num_heads)
    q, k, v = (t.reshape(batch, *heads).transpose(1, 2) for t in (q, k, v))  # [B, P * heads, N/P, d]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, channels)


def forward(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return (out, logsumexp)."""
    return (FORWARD if watched(q, k, v) else _forward)(q, k, v, num_parts, num_heads)


def _forward(q, k, v, num_parts, num_heads):
    return _SERVERS["triton"].forward(*map(rows, (q, k, v)), num_parts, num_heads)


def _backward(grad_out, q, k, v, out, logsumexp, num_parts, num_heads):
    q, k, v = map(rows, (q, k, v))
    return _SERVERS["triton"].backward(aligned(grad_out), q, k, v, out, logsumexp, num_parts, num_heads)


def aligned(t: Tensor) -> Tensor:
    """Return a contiguous tensor at a multiple of 16 bytes."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def rows(t: Tensor) -> Tensor:
    """Return t (B, N, channels) if its tokens lie as aligned rows, as slices of a joint projection do, else a copy."""
    item = t.element_size()
    fits = t.data_ptr() % 16 == 0 and all(stride * item % 16 == 0 for stride in t.stride()[:2])
    return t if t.stride(2) == 1 and fits else t.clone(memory_format=torch.contiguous_format)


def _fake_forward(q, k, v, num_parts, num_heads):
    batch, tokens, _ = q.shape
    logsumexp = q.new_empty((batch, num_parts * num_heads, tokens // num_parts), dtype=torch.float32)
    return q.new_empty(q.shape), logsumexp


def _fake_backward(grad_out, q, k, v, out, logsumexp, num_parts, num_heads):
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


_OPTIONS = "int num_parts, int num_heads"
FORWARD = register(
    f"partition_attention_forward(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor out, Tensor logsumexp)",
    _forward,
    _fake_forward,
)
BACKWARD = register(
    "partition_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, "
    f"{_OPTIONS}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    _backward,
    _fake_backward,
)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, num_parts, num_heads, q, k, v):
        out, logsumexp = forward(q, k, v, num_parts, num_heads)
        ctx.options = num_parts, num_heads
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        saved = ctx.saved_tensors
        grads = (BACKWARD if watched(grad_out, *saved) else _backward)(grad_out, *saved, *ctx.options)
        needed = [g if need else None for g, need in zip(grads, ctx.needs_input_grad[2:], strict=True)]
        return None, None, *once(needed, grad_out, *saved[:3])
