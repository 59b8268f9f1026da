"""LGA's mixture of scales: the registered operators `fastattn::scale_mix_{forward,backward}` (Triton).

z = x + sum over i of a_i * upsample(coarse_i) + position encoding, with a = softmax(conv1x1(x)) of one more entry than
there are coarse maps: the first is x's own, and drops out. `shares` (B, scales + 1, H, W) float32 is a. Backward
returns the gradients of weight, bias and position encoding as one tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.parameters import unflatten
from ..core.reference import Affine
from ..core.registry import Servers, dense, once, register, watched

_SERVERS = Servers("lga.scale_mix")


def mix_scales(x: Tensor, coarse: Sequence[Tensor], weights: Affine, position_encoding: Tensor) -> Tensor:
    """Return z (B, D, H, W), recording a graph only where a gradient is wanted."""
    layout = torch.contiguous_format if dense(x).is_contiguous() else torch.channels_last
    x, *coarse = (t.contiguous(memory_format=layout) for t in (x, *coarse))
    weight, bias = weights
    inputs = (x, weight, bias.to(weight.dtype), position_encoding.to(weight.dtype).contiguous(), *coarse)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return _Recorded.apply(*inputs)
    return forward(*inputs)[0]


def forward(x, weight, bias, position_encoding, *coarse) -> tuple[Tensor, Tensor]:
    run = FORWARD if watched(x, *coarse, weight, bias, position_encoding) else _forward
    return run(x, coarse, weight, bias, position_encoding)


def _forward(x, coarse, weight, bias, position_encoding):
    return _SERVERS["triton"].forward(dense(x), coarse, weight, bias, position_encoding)


def _backward(grad_z, x, coarse, shares, weight, position_encoding, need_params):
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    grad_z = grad_z.contiguous(memory_format=layout)
    return _SERVERS["triton"].backward(grad_z, x, coarse, shares, weight, position_encoding, need_params)


def _fake_forward(x, coarse, weight, bias, position_encoding):
    batch, _, height, width = x.shape
    shares = x.new_empty((batch, len(coarse) + 1, height, width), dtype=torch.float32)
    return torch.empty_like(dense(x)), shares


def _fake_backward(grad_z, x, coarse, shares, weight, position_encoding, need_params):
    size = weight.numel() + weight.shape[0] + position_encoding.numel() if need_params else 0
    return torch.empty_like(x), [torch.empty_like(t) for t in coarse], weight.new_empty(size)


FORWARD = register(
    "scale_mix_forward(Tensor x, Tensor[] coarse, Tensor weight, Tensor bias, Tensor position_encoding) "
    "-> (Tensor z, Tensor shares)",
    _forward,
    _fake_forward,
)
BACKWARD = register(
    "scale_mix_backward(Tensor grad_z, Tensor x, Tensor[] coarse, Tensor shares, Tensor weight, "
    "Tensor position_encoding, bool need_params) -> (Tensor grad_x, Tensor[] grad_coarse, Tensor grad_params)",
    _backward,
    _fake_backward,
)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, x, weight, bias, position_encoding, *coarse):
        z, shares = forward(x, weight, bias, position_encoding, *coarse)
        ctx.save_for_backward(x, shares, weight, bias, position_encoding, *coarse)
        return z

    @staticmethod
    def backward(ctx, grad_z):
        x, shares, weight, bias, encoding, *coarse = ctx.saved_tensors
        needs = ctx.needs_input_grad
        need_params = any(needs[1:4])
        run = BACKWARD if watched(grad_z, x) else _backward
        grad_x, grad_coarse, flat = run(grad_z, x, coarse, shares, weight, encoding, need_params)
        params = weight, bias, encoding
        found = [grad_x, *(unflatten(flat, params) if need_params else params), *grad_coarse]
        return tuple(once([g if need else None for g, need in zip(found, needs, strict=True)], grad_z, x, *params))
