"""LGA, local-global attention (arXiv 2411.09604, equations 1-15), in eager PyTorch.

    z     = sum over i of a_i Y_i + position encoding     a = softmax(conv1x1(x)), Y_0 = x,
                                                          Y_i = upsample(conv1x1(dwconv3x3(x, stride 2^(i-1)))) + x
    q,k,v = chunk(groupedconv1x1(dwconv(z)))              for each kernel size, each (B, heads, d, HW), d = D / heads
    A     = softmax(q k^T / sqrt(d))                      over channels, (B, heads, d, d)
    out_k = A v + x                                       local: the mean over the local kernels; global: of one
    out   = conv1x1(alpha_local * local + alpha_global * global)

The three parts are taken over the whole output of the grouped convolution, whose groups are as many as heads: q of head
i comes from input group i // 3, k from (heads + i) // 3 and v from (2 * heads + i) // 3. Both resizings are by nearest
neighbour, with the integer rule floor(i * in / out).

The released module contracts A and v over separate indices; the rows of A sum to one, so that each channel of a head
gets the sum of the head's v, and q and k have no effect: contraction "released". "paper" is equation 10 in the released
module's layout: its A is d x d, of a head's channels, where the paper's text around equation 8 speaks of space.
"spatial" is that text: A = softmax(q^T k / sqrt(d)) over pixels, (B, heads, HW, HW), and out_k = v A^T + x.

What the fast paths use, each exact up to rounding:

- The a_i sum to one: z = x + sum over i of a_i upsample(conv_i(x)) + position encoding.
- q, k and v are 1x1 convolutions of one depthwise output E with head-sized slices E_g: with G = E_a E_b^T (d x d) and
  s = the sums of E over the pixels, q k^T = W_q G W_k^T + (W_q s_a) b_k^T + b_q (W_k s_b)^T + HW b_q b_k^T, and
  A v = (A W_v) E_c + A b_v. q, k and v are not formed.
- Means, alphas and residuals are weights of one sum before out_conv.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..core.reference import Affine, depthwise, resize_nearest

CONTRACTIONS = ("paper", "released", "spatial")


class Separable(NamedTuple):
    """A depthwise convolution and the 1x1 convolution after it."""

    depthwise: Affine
    pointwise: Affine


class Branch(NamedTuple):
    """One kernel size each, and the number that weighs their mean, a tensor of one element."""

    convs: Sequence[Separable]
    alpha: Tensor


def mix_scales(x: Tensor, scales: Sequence[Separable], weights: Affine, position_encoding: Tensor) -> Tensor:
    """Return z (B, D, H, W) (eq. 1-5)."""
    height, width = x.shape[2:]
    shares = F.conv2d(x, *weights).softmax(dim=1)  # [B, scales + 1, H, W]
    features = [x]
    for i, scale in enumerate(scales):
        coarse = F.conv2d(depthwise(x, scale.depthwise, stride=2**i), *scale.pointwise)
        features.append(resize_nearest(coarse, height, width) + x)
    z = sum(share * feature for share, feature in zip(shares.split(1, dim=1), features, strict=True))
    return z + resize_nearest(position_encoding, height, width)


def attend(qkv: Tensor, num_heads: int, contraction: str) -> Tensor:
    """Attend among the channels of each head, or for contraction "spatial" among its pixels, of q, k and v side by side
    (B, 3 D, H, W) (eq. 6-10); (B, D, H, W)."""
    batch, triple, height, width = qkv.shape
    dim = triple // 3
    q, k, v = (t.reshape(batch, num_heads, dim // num_heads, height * width) for t in qkv.chunk(3, dim=1))
    scale = (dim // num_heads) ** -0.5
    if contraction == "spatial":
        attention = (q.transpose(2, 3) @ k * scale).softmax(dim=3)  # [B, heads, HW, HW]
        return (v @ attention.transpose(2, 3)).reshape(batch, dim, height, width)
    attention = (q @ k.transpose(2, 3) * scale).softmax(dim=3)
    if contraction == "released":  # its rows' sums, which are one, times the sum of the values
        attention, v = attention.sum(dim=3, keepdim=True), v.sum(dim=2, keepdim=True)
    return (attention @ v).reshape(batch, dim, height, width)


def local_global_attention(
    x: Tensor,
    scales: Sequence[Separable],
    scale_attention: Affine,
    position_encoding: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
    *,
    num_heads: int,
    contraction: str = "paper",
) -> Tensor:
    """Attend to local and global features of x (B, D, H, W) (eq. 1-15)."""
    z = mix_scales(x, scales, scale_attention, position_encoding)
    mixed = []
    for branch in branches:
        triples = [F.conv2d(depthwise(z, conv.depthwise), *conv.pointwise, groups=num_heads) for conv in branch.convs]
        outs = [attend(qkv, num_heads, contraction) + x for qkv in triples]
        mixed.append(branch.alpha * (sum(outs) / len(outs)))
    return F.conv2d(sum(mixed[1:], start=mixed[0]), *out_conv)
