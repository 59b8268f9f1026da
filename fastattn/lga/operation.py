"""LGA by its algebra (see `fastattn.lga.reference`), and what its backends do not take.

On the CPU one call of the extension does it all, the registered operators `fastattn::lga_{forward,backward}`, and on
GPUs it is a composition: 1x1 convolutions are the library's, depthwise convolutions, the mixture of scales and the
channel attention are Triton's. What is kept for backward is x and z; everything else is formed anew from them.

Attention among pixels (contraction "spatial") is torch's own, which never has the matrix of all pairs: on the CPU the
rest is torch's too, on GPUs Triton's as above.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.backends import declare, extension_reasons
from ..core.operation import FlatOperation
from ..core.parameters import cast
from ..core.reference import Affine
from . import native, reference
from .depthwise import depthwise_convolutions
from .gram_attention import gram_attention
from .reference import Branch, Separable
from .scale_mix import mix_scales


def local_global_attention(
    x: Tensor,
    scales: Sequence[Separable],
    scale_attention: Affine,
    position_encoding: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
    num_heads: int,
    contraction: str,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Attend to local and global features of x (B, D, H, W), computing in a dtype."""
    # on the CPU in x's where that is wider: in float16 x's gradient underflows where alphas are small
    own_dtype = torch.promote_types(x.dtype, dtype) if backend == "native" else dtype
    own = partial(cast, dtype=own_dtype)
    scales = [Separable(*map(own, scale)) for scale in scales]
    branches = [Branch([Separable(*map(own, conv)) for conv in convs], alpha) for convs, alpha in branches]
    encoding = position_encoding.to(own_dtype)
    arguments = (x.to(own_dtype), scales, own(scale_attention), encoding, branches, own(out_conv))
    if backend == "native" and contraction == "spatial":
        return _in_torch(*arguments, num_heads).to(dtype)
    run = _whole if backend == "native" else _composed
    return run(*arguments, num_heads, contraction).to(dtype)


def _in_torch(
    x: Tensor,
    scales: Sequence[Separable],
    scale_attention: Affine,
    position_encoding: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
    num_heads: int,
) -> Tensor:
    """Run torch's operators, for attention among pixels."""
    z = reference.mix_scales(x, scales, scale_attention, position_encoding)
    features = [reference.depthwise(z, conv.depthwise) for branch in branches for conv in branch.convs]
    return F.conv2d(_among_pixels(features, branches, x, num_heads), *out_conv)


def _whole(
    x: Tensor,
    scales: Sequence[Separable],
    scale_attention: Affine,
    position_encoding: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
    num_heads: int,
    contraction: str,
) -> Tensor:
    """Run the extension, which takes the parameters as one list."""
    params: list[Any] = [t for scale in scales for affine in scale for t in affine]
    params += [*scale_attention, position_encoding]
    for convs, alpha in branches:
        alpha = alpha.to(x.dtype)
        params += [*(t for conv in convs for affine in conv for t in affine), alpha if alpha.dim() else alpha.view(1)]
    params += out_conv
    sizes = len(scales), [len(convs) for convs, _ in branches]
    return LGA(x, params, *sizes, num_heads, contraction == "released")


def _composed(
    x: Tensor,
    scales: Sequence[Separable],
    scale_attention: Affine,
    position_encoding: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
    num_heads: int,
    contraction: str,
) -> Tensor:
    """Run the composition, in two segments of which each is run again for its backward."""
    mix = partial(_mix, scales=scales, weights=scale_attention, position_encoding=position_encoding)
    attend = partial(_attend, branches=branches, out_conv=out_conv, num_heads=num_heads, contraction=contraction)
    if not torch.is_grad_enabled():
        return attend(x, mix(x))
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    return again(attend, x, again(mix, x))


def _mix(x: Tensor, scales: Sequence[Separable], weights: Affine, position_encoding: Tensor) -> Tensor:
    """Return z (B, D, H, W)."""
    strides = [2**i for i in range(len(scales))]
    coarse = depthwise_convolutions(x, [scale.depthwise for scale in scales], strides)
    coarse = [F.conv2d(maps, *scale.pointwise) for maps, scale in zip(coarse, scales, strict=True)]
    return mix_scales(x, coarse, weights, position_encoding)


def _attend(
    x: Tensor,
    z: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
    num_heads: int,
    contraction: str,
) -> Tensor:
    """Return out (B, D, H, W)."""
    convs = [conv for branch in branches for conv in branch.convs]
    features = depthwise_convolutions(z, [conv.depthwise for conv in convs], [1] * len(convs))
    if contraction == "spatial":
        mixed = _among_pixels(features, branches, x, num_heads)
    else:
        affines = [conv.pointwise for conv in convs]
        mixed = gram_attention(features, affines, _shares(branches), x, num_heads, contraction)
    return F.conv2d(mixed, *out_conv)


def _shares(branches: Sequence[Branch]) -> Tensor:
    """Return what each convolution's attention weighs in the sum of all, float32 (K,)."""
    return torch.cat([(branch.alpha.float() / len(branch.convs)).expand(len(branch.convs)) for branch in branches])


def _among_pixels(features: Sequence[Tensor], branches: Sequence[Branch], x: Tensor, num_heads: int) -> Tensor:
    """Return the weighted sum of attention and residual (B, D, H, W), of depthwise outputs (B, D, H, W) each."""
    batch, dim, height, width = x.shape
    shares = _shares(branches)
    mixed = x * shares.sum().to(x.dtype)
    affines = (conv.pointwise for branch in branches for conv in branch.convs)
    for share, maps, affine in zip(shares.to(x.dtype), features, affines, strict=True):
        tokens = F.conv2d(maps, *affine, groups=num_heads).flatten(2).transpose(1, 2).contiguous()  # [B, HW, 3 D]
        q, k, v = tokens.view(batch, height * width, 3, num_heads, dim // num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).permute(0, 1, 3, 2)  # [B, heads, d, HW]
        mixed = mixed + share * out.reshape(batch, dim, height, width)
    return mixed


class _Whole(FlatOperation):
    """x (B, D, H, W); params are of each scale weight and bias of the depthwise and of the 1x1 convolution; weight and
    bias of the attention over scales; the position encoding; of each branch its convolutions, likewise, and its alpha;
    weight and bias of the last convolution. `branches` holds the numbers of convolutions, and z is saved."""

    server = native

    def definition(
        self,
        x: Tensor,
        params: Sequence[Tensor],
        num_scales: int,
        branches: Sequence[int],
        num_heads: int,
        released: bool,
        **_: Any,
    ) -> Tensor:
        flat = iter(params)

        def affine() -> tuple[Tensor, Tensor]:
            return next(flat), next(flat)

        def separable(count: int) -> list[Separable]:
            return [Separable(affine(), affine()) for _ in range(count)]

        scales, weights, encoding = separable(num_scales), affine(), next(flat)
        groups = [Branch(separable(count), next(flat)) for count in branches]
        contraction = "released" if released else "paper"
        return reference.local_global_attention(
            x, scales, weights, encoding, groups, affine(), num_heads=num_heads, contraction=contraction
        )


LGA = _Whole("lga", ", int num_scales, int[] branches, int num_heads, bool released")


def facts(
    x: Tensor,
    *,
    embed_dim: int = 0,
    num_heads: int = 1,
    local_kernel_sizes: Sequence[int] = (),
    num_scales: int = 0,
    contraction: str = "paper",
    **_: Any,
) -> tuple:
    """Return what the limits are about: the channels of a head; kernels or scales, whichever are more; whether
    attention is among pixels, which is torch's."""
    return embed_dim // num_heads, max(len(local_kernel_sizes) + 1, num_scales), contraction == "spatial"


def _native_limits(head_dim: int = 1, maps: int = 1, among_pixels: bool = False) -> list[str]:
    if among_pixels:
        return []
    return extension_reasons() + ([f"{maps} kernels or scales; native takes up to 15"] if maps > 15 else [])


def _triton_limits(head_dim: int = 1, maps: int = 1, among_pixels: bool = False) -> list[str]:
    within = (head_dim <= 64 or among_pixels) and maps <= 7
    return [] if within else [f"heads of {head_dim} channels, {maps} kernels or scales; it takes up to 64 and 7"]


declare("lga", facts, native=_native_limits, triton=_triton_limits)
