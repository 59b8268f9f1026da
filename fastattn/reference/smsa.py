"""SMSA, the shared multi-semantic spatial attention of SCSA (arXiv 2407.05128, eq. 1-6), in eager PyTorch.

    x_h = mean_W(x)  (B, C, H)        x_w = mean_H(x)  (B, C, W)
    a_h = gate(GroupNorm4(dwconv(x_h)))   a_w = gate(GroupNorm4(dwconv(x_w)))
    s   = x * a_h[..., None] * a_w[..., None, :]

`dwconv` splits the channels into four groups and convolves group i depthwise along the length with kernel
k_i; x_h and x_w share its weights. A softmax gate runs over the length.

What the fast paths use: x enters through its two axis means and the final product only, so with dO the
gradient of s, R1 = sum_W(dO * x * a_w) (B, C, H) and R2 = sum_H(dO * x * a_h) (B, C, W) are the gradients of
a_h and a_w, gathered in one pass over (dO, x); the chain back to x_h and x_w works on vectors, and a second
pass writes

    dx = dO * a_h * a_w + dx_h / W + dx_w / H

with dx_h and dx_w the gradients of the means. Nothing of x's size but x is kept.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = 4


def axis_gate(
    mean: Tensor,
    conv_weights: Sequence[Tensor],
    conv_biases: Sequence[Tensor],
    norm: Sequence[Tensor],
    gate_layer: str,
) -> Tensor:
    """Turn one axis mean (B, C, L) into its gate (B, C, L) (equations 2-5)."""
    parts = mean.chunk(GROUPS, dim=1)  # 4 x [B, C/4, L]
    convolved = [
        F.conv1d(part, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
        for part, weight, bias in zip(parts, conv_weights, conv_biases, strict=True)
    ]
    logits = torch.group_norm(torch.cat(convolved, dim=1), GROUPS, norm[0], norm[1])
    return logits.softmax(dim=2) if gate_layer == "softmax" else logits.sigmoid()


def smsa(
    x: Tensor,
    conv_weights: Sequence[Tensor],
    conv_biases: Sequence[Tensor],
    norm_h: Sequence[Tensor],
    norm_w: Sequence[Tensor],
    *,
    gate_layer: str = "sigmoid",
) -> Tensor:
    """Gate x (B, C, H, W) by its rows and its columns (eq. 1-6); shapes in `fastattn.functional`."""
    a_h = axis_gate(x.mean(dim=3), conv_weights, conv_biases, norm_h, gate_layer)
    a_w = axis_gate(x.mean(dim=2), conv_weights, conv_biases, norm_w, gate_layer)
    return x * a_h[..., None] * a_w[..., None, :]
