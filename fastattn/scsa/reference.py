"""SCSA and its parts (arXiv 2407.05128) in eager PyTorch: SMSA, then PCSA.

SMSA, the shared multi-semantic spatial attention (eq. 1-7):

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

PCSA, the progressive channel self-attention (eq. 8-12, the pooling is 8; 13 joins the two):

    y = GroupNorm1(pool(s))                    (B, C, H', W'), N = H' * W'
    q, k, v = per-channel scale (and bias) of y, as (B, heads, d, N) with d = C / heads
    A = softmax(q k^T / sqrt(d))               over channels, (B, heads, d, d)
    g = gate(mean_N(A v))                      (B, C, 1, 1)
    out = g * s

The scale is the released module's sqrt(C / heads) where the paper prints sqrt(C), and GroupNorm1 is its
addition. A softmax gate runs over the channels.

What the fast paths use, each exact up to rounding:

- The mean commutes with attention, mean_N(A v) = A mean_N(v): one matrix-vector product, and A v is never
  formed.
- q k^T is a sum of N outer products, so a row of A is formed from q_i and k, reduced by an online softmax
  against mean_N(v), and forgotten: C x C is never stored. Backward forms the rows again.
- For SCSA the pooled s is a pooling of x weighted by a_h and a_w, and out = x * (a_h * g) * a_w:
  s is not stored either. With the sums of x * a_w over each row's windows and of x * a_h over each column's
  windows, gathered in the pass that gathers R1 and R2 of SMSA, dg = sum_h(a_h * R1), dy follows, and the
  gradients of a_h and a_w follow from these sums alone.
- Max pooling passes its gradient to the first maximum of each window in row-major order, as torch does.
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
    """Turn one axis mean (B, C, L) into its gate (B, C, L), with weights that both share."""
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
    """Gate x (B, C, H, W) by its rows and its columns (eq. 1-7); shapes in `fastattn.functional`."""
    a_h = axis_gate(x.mean(dim=3), conv_weights, conv_biases, norm_h, gate_layer)
    a_w = axis_gate(x.mean(dim=2), conv_weights, conv_biases, norm_w, gate_layer)
    return x * a_h[..., None] * a_w[..., None, :]


def compress(s: Tensor, window_size: int, down_sample_mode: str, conv_d_weight: Tensor | None) -> Tensor:
    """Pool s (B, C, H, W) to (B, C, H // window, W // window), or to one pixel with window -1 (eq. 8)."""
    if window_size == -1:
        return s.mean(dim=(2, 3), keepdim=True)
    if down_sample_mode == "avg_pool":
        return F.avg_pool2d(s, window_size)
    if down_sample_mode == "max_pool":
        return F.max_pool2d(s, window_size)
    assert conv_d_weight is not None
    rows = s.shape[2] - s.shape[2] % window_size
    columns = s.shape[3] - s.shape[3] % window_size
    return F.conv2d(F.pixel_unshuffle(s[:, :, :rows, :columns], window_size), conv_d_weight)


def pcsa(
    x: Tensor,
    norm: Sequence[Tensor],
    qkv_weights: Sequence[Tensor],
    qkv_biases: Sequence[Tensor] | None = None,
    *,
    head_num: int = 1,
    window_size: int = 7,
    down_sample_mode: str = "avg_pool",
    gate_layer: str = "sigmoid",
    conv_d_weight: Tensor | None = None,
    attn_drop_ratio: float = 0.0,
    training: bool = False,
) -> Tensor:
    """Gate the channels of x (B, C, H, W) by self-attention (eq. 8-12); shapes in `fastattn.functional`."""
    channels = x.shape[1]
    y = torch.group_norm(
        compress(x, window_size, down_sample_mode, conv_d_weight), 1, norm[0], norm[1]
    )  # [B, C, H', W']
    q, k, v = (
        F.conv2d(y, weight, bias, groups=channels).unflatten(1, (head_num, channels // head_num)).flatten(3)
        for weight, bias in zip(qkv_weights, qkv_biases or (None, None, None), strict=True)
    )  # each [B, heads, d, N]
    attention = (q @ k.transpose(-2, -1) * (channels // head_num) ** -0.5).softmax(dim=-1)  # [B, heads, d, d]
    attention = F.dropout(attention, attn_drop_ratio, training)
    logits = (attention @ v).mean(dim=-1).reshape(-1, channels, 1, 1)
    gate = torch.softmax(logits, dim=1) if gate_layer == "softmax" else logits.sigmoid()
    return gate * x


def scsa(
    x: Tensor,
    conv_weights: Sequence[Tensor],
    conv_biases: Sequence[Tensor],
    norm_h: Sequence[Tensor],
    norm_w: Sequence[Tensor],
    norm: Sequence[Tensor],
    qkv_weights: Sequence[Tensor],
    qkv_biases: Sequence[Tensor] | None = None,
    *,
    head_num: int = 1,
    window_size: int = 7,
    down_sample_mode: str = "avg_pool",
    gate_layer: str = "sigmoid",
    conv_d_weight: Tensor | None = None,
    attn_drop_ratio: float = 0.0,
    training: bool = False,
) -> Tensor:
    """Gate x (B, C, H, W) by rows and columns, then channels (eq. 1-13); shapes in `fastattn.functional`."""
    s = smsa(x, conv_weights, conv_biases, norm_h, norm_w, gate_layer=gate_layer)
    return pcsa(
        s,
        norm,
        qkv_weights,
        qkv_biases,
        head_num=head_num,
        window_size=window_size,
        down_sample_mode=down_sample_mode,
        gate_layer=gate_layer,
        conv_d_weight=conv_d_weight,
        attn_drop_ratio=attn_drop_ratio,
        training=training,
    )
