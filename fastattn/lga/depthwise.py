"""Several depthwise convolutions of one map: the registered operators `fastattn::depthwise_{forward,backward}`
(Triton).

weights are (D, 1, k, k) with odd k, biases (D); the outputs (B, D, ceil(H / stride), ceil(W / stride)) have x's memory
format. Backward returns the gradients of all weights, then of all biases, as one tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.parameters import unflatten
from ..core.reference import Affine
from ..core.registry import Servers, dense, once, register, watched

_SERVERS = Servers("common.depthwise")


def depthwise_convolutions(x: Tensor, affines: Sequence[Affine], strides: Sequence[int]) -> list[Tensor]:
    """Return each convolution of x (B, D, H, W), recording a graph only where a gradient is wanted."""
    x = dense(x)
    weights, biases = map(list, zip(*affines, strict=True))
    params = (*weights, *biases)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
        return list(_Recorded.apply(tuple(strides), x, *params))
    return forward(x, weights, biases, strides)


def forward(x, weights, biases, strides) -> list[Tensor]:
    return (FORWARD if watched(x, *weights, *biases) else _forward)(x, weights, biases, strides)


def _forward(x, weights, biases, strides):
    return _SERVERS["triton"].forward(dense(x), weights, biases, strides)


def _backward(grads, x, weights, strides, need_x, need_params):
    x = dense(x)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    grads = [grad.contiguous(memory_format=layout) for grad in grads]
    return _SERVERS["triton"].backward(grads, x, weights, strides, need_x, need_params)


def _fake_forward(x, weights, biases, strides):
    batch, dim, height, width = x.shape
    layout = torch.contiguous_format if dense(x).is_contiguous() else torch.channels_last
    shapes = [(batch, dim, -(-height // stride), -(-width // stride)) for stride in strides]
    return [torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout) for shape in shapes]


def _fake_backward(grads, x, weights, strides, need_x, need_params):
    size = sum(weight.numel() + weight.shape[0] for weight in weights) if need_params else 0
    return torch.empty_like(dense(x)) if need_x else x.new_empty(0), weights[0].new_empty(size)


FORWARD = register(
    "depthwise_forward(Tensor x, Tensor[] weights, Tensor[] biases, int[] strides) -> Tensor[]", _forward, _fake_forward
)
BACKWARD = register(
    "depthwise_backward(Tensor[] grads, Tensor x, Tensor[] weights, int[] strides, bool need_x, bool need_params) "
    "-> (Tensor grad_x, Tensor grad_params)",
    _backward,
    _fake_backward,
)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, strides, x, *params):
        ctx.strides = strides
        ctx.save_for_backward(x, *params)
        return tuple(forward(x, list(params[: len(strides)]), list(params[len(strides) :]), strides))

    @staticmethod
    def backward(ctx, *grads):
        x, *params = ctx.saved_tensors
        need_x, *needs = ctx.needs_input_grad[1:]
        run = BACKWARD if watched(x, *params, *grads) else _backward
        grad_x, flat = run(list(grads), x, params[: len(ctx.strides)], ctx.strides, need_x, any(needs))
        found = [grad_x, *(unflatten(flat, params) if any(needs) else params)]
        return None, *once([g if need else None for g, need in zip(found, (need_x, *needs), strict=True)], x, *grads)
