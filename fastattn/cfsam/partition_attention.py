"""Partitioned attention: the registered operators `fastattn::partition_attention_{forward,backward}` (Triton), the
composition of torch's operators that serves the CPU, and what the backends do not take.

q, k, v and out are (B, N, heads * d); token n is in part n % num_parts. `logsumexp`, in base 2, is what backward needs
besides them: (B, num_parts * heads, N // num_parts), float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.backends import declare
from ..core.operation import Operation, Servers
from . import reference

HEAD_DIMS = (16, 32, 64, 128)  # of the Triton attention kernels
_SERVERS = Servers("cfsam.partition_attention")


def partition_attention(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int, backend: str) -> Tensor:
    """Attend within parts on a backend, recording a graph only where a gradient is wanted."""
    if backend == "native":
        return compose(q, k, v, num_parts, num_heads)
    return _PARTITION_ATTENTION.call((num_parts, num_heads), q, k, v)


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


def aligned(t: Tensor) -> Tensor:
    """Return a contiguous tensor at a multiple of 16 bytes."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def rows(t: Tensor) -> Tensor:
    """Return t (B, N, channels) if its tokens lie as aligned rows, as slices of a joint projection do, else a copy."""
    item = t.element_size()
    fits = t.data_ptr() % 16 == 0 and all(stride * item % 16 == 0 for stride in t.stride()[:2])
    return t if t.stride(2) == 1 and fits else t.clone(memory_format=torch.contiguous_format)


class _PartitionAttention(Operation):
    forward_schema = "(Tensor q, Tensor k, Tensor v, int num_parts, int num_heads) -> (Tensor out, Tensor logsumexp)"
    backward_schema = (
        "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, int num_parts, int num_heads) "
        "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)"
    )

    def outputs(self, options, inputs, save):
        out, logsumexp = self.run(inputs, *inputs, *options)
        return out, (*inputs, out, logsumexp)

    def gradients(self, options, kept, grads, needs):
        tensors = (*grads, *kept)
        return self.run_backward(tensors, *tensors, *options)

    def forward(self, q, k, v, num_parts, num_heads):
        return _SERVERS["triton"].forward(*map(rows, (q, k, v)), num_parts, num_heads)

    def backward(self, grad_out, q, k, v, out, logsumexp, num_parts, num_heads):
        q, k, v = map(rows, (q, k, v))
        return _SERVERS["triton"].backward(aligned(grad_out), q, k, v, out, logsumexp, num_parts, num_heads)

    def fake_forward(self, q, k, v, num_parts, num_heads):
        batch, tokens, _ = q.shape
        logsumexp = q.new_empty((batch, num_parts * num_heads, tokens // num_parts), dtype=torch.float32)
        return q.new_empty(q.shape), logsumexp

    def fake_backward(self, grad_out, q, k, v, out, logsumexp, num_parts, num_heads):
        return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)

    def definition(self, q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int, **_: Any) -> Tensor:
        return reference.partition_attention(q, k, v, num_parts, num_heads)


_PARTITION_ATTENTION = _PartitionAttention("partition_attention")


def facts(x: Tensor, *, dim: int = 0, num_heads: int = 0, **_: Any) -> tuple:
    """Return what the limits are about: the channels of a head."""
    channels = dim or (x.shape[-1] if x.dim() == 3 else 0)  # a map tells nothing of them
    return (channels // num_heads if channels and num_heads else HEAD_DIMS[0],)


def limits_on_triton(head_dim: int = HEAD_DIMS[0]) -> list[str]:
    """Return what the Triton kernels do not take."""
    known = ", ".join(map(str, HEAD_DIMS))
    wrong = f"heads have {head_dim or 'other numbers of'} channels; the kernels take {known}"
    return [] if head_dim in HEAD_DIMS else [wrong]


declare("partition_attention", facts, triton=limits_on_triton)
