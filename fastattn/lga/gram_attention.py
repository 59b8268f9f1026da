"""LGA's channel attention of several feature maps from their Gram matrices: the registered operators
`fastattn::gram_attention_{forward,backward}` (Triton).

features are depthwise outputs (B, D, H, W), one for each kernel, with the weight (3D, D / heads, 1, 1) and bias (3D) of
the grouped 1x1 convolution behind it; shares (K,) float32 weigh them, and their sum x. `saved` holds, for each head of
a map, the attention (d, d), the Gram matrix (d, d) and both row sums (d), float32; it is empty for the released
contraction. Backward returns the gradients of all weights, then of all biases, as one tensor; that of x,
sum(shares) * grad_out, is formed here.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.operation import Operation, Servers
from ..core.parameters import unflatten
from ..core.reference import Affine
from ..core.tensors import dense, layout
from .reference import attend

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
    x = dense(x)
    laid = (t.contiguous(memory_format=layout(x)) for t in features)
    weights, biases = zip(*affines, strict=True)
    return _GRAM_ATTENTION.call((num_heads, contraction), shares, x, *laid, *weights, *biases)


class _GramAttention(Operation):
    forward_schema = (
        "(Tensor[] features, Tensor[] weights, Tensor[] biases, Tensor shares, Tensor x, int num_heads, "
        "str contraction) -> (Tensor out, Tensor saved)"
    )
    backward_schema = (
        "(Tensor grad_out, Tensor[] features, Tensor[] weights, Tensor[] biases, Tensor shares, Tensor x, "
        "Tensor saved, int num_heads, str contraction) -> (Tensor[] grad_features, Tensor grad_params, "
        "Tensor grad_shares)"
    )

    def outputs(self, options, inputs, save):
        shares, x, *rest = inputs
        out, saved = self.run((x, shares, *rest), *_thirds(rest), shares, x, *options)
        return out, (shares, x, saved, *rest)

    def gradients(self, options, kept, grads, needs):
        (grad_out,), (shares, x, saved, *rest) = grads, kept
        features, weights, biases = _thirds(rest)
        grads, flat, grad_shares = self.run_backward(
            (grad_out, x, *rest), grad_out, features, weights, biases, shares, x, saved, *options
        )
        grad_x = grad_out * shares.sum().to(grad_out.dtype) if needs[1] else None
        return [grad_shares, grad_x, *grads, *unflatten(flat, [*weights, *biases])]

    def forward(self, features, weights, biases, shares, x, num_heads, contraction):
        return _SERVERS["triton"].forward(features, weights, biases, shares, dense(x), num_heads, contraction)

    def backward(self, grad_out, features, weights, biases, shares, x, saved, num_heads, contraction):
        grad_out = grad_out.contiguous(memory_format=layout(x))
        return _SERVERS["triton"].backward(
            grad_out, features, weights, biases, shares, x, saved, num_heads, contraction
        )

    def fake_forward(self, features, weights, biases, shares, x, num_heads, contraction):
        batch, dim, _, _ = x.shape
        d = dim // num_heads
        shape = (batch, len(features), num_heads, 2 * d + 2, d) if contraction == "paper" else (0,)
        return torch.empty_like(dense(x)), x.new_empty(shape, dtype=torch.float32)

    def fake_backward(self, grad_out, features, weights, biases, shares, x, saved, num_heads, contraction):
        size = sum(w.numel() + b.numel() for w, b in zip(weights, biases, strict=True))
        return [torch.empty_like(t) for t in features], weights[0].new_empty(size), torch.empty_like(shares)

    def definition(
        self,
        features: Sequence[Tensor],
        weights: Sequence[Tensor],
        shares: Tensor,
        x: Tensor,
        num_heads: int,
        contraction: str,
        biases: Sequence[Tensor | None] | None = None,
        **_: Any,
    ) -> Tensor:
        """Biases count nothing, and backward has none."""
        affines = zip(features, weights, biases or [None] * len(weights), strict=True)
        attended = [attend(F.conv2d(*triple, groups=num_heads), num_heads, contraction) for triple in affines]
        weighed = [share * (out + x) for share, out in zip(shares.to(x.dtype), attended, strict=True)]
        return sum(weighed[1:], start=weighed[0])


_GRAM_ATTENTION = _GramAttention("gram_attention")


def _thirds(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return features, weights and biases apart."""
    third = len(tensors) // 3
    return [[*tensors[i * third : (i + 1) * third]] for i in range(3)]
