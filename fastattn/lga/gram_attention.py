"""LGA's channel attention of several feature maps from their Gram matrices: the registered operators
`fastattn::gram_attention_{forward,backward}` (Triton).

features are depthwise outputs (B, D, H, W), one for each kernel, with the weight (3D, D / heads, 1, 1) and bias (3D) of
the grouped 1x1 convolution behind it; shares (K,) float32 weigh them, and their sum x. `saved` holds, for each head of
a map, the attention (d, d), the Gram matrix (d, d) and both row sums (d), float32; it is empty for the released
contraction. Backward returns the gradients of all weights, then of all biases, as one tensor; that of x,
sum(shares) * grad_out, is formed here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.parameters import unflatten
from ..core.reference import Affine
from ..core.registry import Servers, dense, once, register, watched

_SERVERS = Servers("lga.gram_attention")


def gram_attention(
    features: Sequence[Tensor],
    affines: Sequence[Affine],
    shares: Tensor,
    x: Tensor,
    num_heads: int,
    contraction: str,
) -> Tensor:
    """Return the weighted sum of attention and residual (B, D, H, W), recording a graph only where it is wanted."""
    layout = torch.contiguous_format if dense(x).is_contiguous() else torch.channels_last
    x, *features = (t.contiguous(memory_format=layout) for t in (x, *features))
    weights, biases = zip(*affines, strict=True)
    inputs = (shares, x, *features, *weights, *biases)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return _Recorded.apply(num_heads, contraction, *inputs)
    return forward(features, list(weights), list(biases), shares, x, num_heads, contraction)[0]


def forward(features, weights, biases, shares, x, num_heads, contraction) -> tuple[Tensor, Tensor]:
    run = FORWARD if watched(x, *features, *weights, *biases, shares) else _forward
    return run(features, weights, biases, shares, x, num_heads, contraction)


def _forward(features, weights, biases, shares, x, num_heads, contraction):
    return _SERVERS["triton"].forward(features, weights, biases, shares, dense(x), num_heads, contraction)


def _backward(grad_out, features, weights, biases, shares, x, saved, num_heads, contraction):
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    grad_out = grad_out.contiguous(memory_format=layout)
    return _SERVERS["triton"].backward(
        grad_out, features, weights, biases, shares, x, saved, num_heads, contraction
    )


def _fake_forward(features, weights, biases, shares, x, num_heads, contraction):
    batch, dim, _, _ = x.shape
    d = dim // num_heads
    shape = (batch, len(features), num_heads, 2 * d + 2, d) if contraction == "paper" else (0,)
    return torch.empty_like(dense(x)), x.new_empty(shape, dtype=torch.float32)


def _fake_backward(grad_out, features, weights, biases, shares, x, saved, num_heads, contraction):
    size = sum(w.numel() + b.numel() for w, b in zip(weights, biases, strict=True))
    return [torch.empty_like(t) for t in features], weights[0].new_empty(size), torch.empty_like(shares)


_INPUTS = "Tensor[] features, Tensor[] weights, Tensor[] biases, Tensor shares, Tensor x"
FORWARD = register(
    f"gram_attention_forward({_INPUTS}, int num_heads, str contraction) -> (Tensor out, Tensor saved)",
    _forward,
    _fake_forward,
)
BACKWARD = register(
    f"gram_attention_backward(Tensor grad_out, {_INPUTS}, Tensor saved, int num_heads, str contraction) "
    "-> (Tensor[] grad_features, Tensor grad_params, Tensor grad_shares)",
    _backward,
    _fake_backward,
)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, num_heads, contraction, shares, x, *tensors):
        third = len(tensors) // 3
        features, weights, biases = (list(tensors[i * third : (i + 1) * third]) for i in range(3))
        out, saved = forward(features, weights, biases, shares, x, num_heads, contraction)
        ctx.options = num_heads, contraction
        ctx.save_for_backward(shares, x, saved, *tensors)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        shares, x, saved, *tensors = ctx.saved_tensors
        third = len(tensors) // 3
        features, weights, biases = (tensors[i * third : (i + 1) * third] for i in range(3))
        run = BACKWARD if watched(grad_out, x) else _backward
        grads, flat, grad_shares = run(grad_out, features, weights, biases, shares, x, saved, *ctx.options)
        grad_x = grad_out * shares.sum().to(grad_out.dtype) if ctx.needs_input_grad[3] else None
        found = [grad_shares, grad_x, *grads, *unflatten(flat, [*weights, *biases])]
        found = [g if need else None for g, need in zip(found, ctx.needs_input_grad[2:], strict=True)]
        return None, None, *once(found, grad_out, x, shares, *tensors)
