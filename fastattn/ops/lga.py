"""LGA by its algebra (see `fastattn.reference.lga`): the registered operators `fastattn::lga_{forward,backward}` on the
CPU, where one call does it all, and on GPUs a composition: 1x1 convolutions are the library's, depthwise convolutions,
the mixture of scales and the channel attention are Triton's.

`params` is one flat list: of each scale weight and bias of the depthwise and of the 1x1 convolution; weight and bias of
the attention over scales; the position encoding; of each branch its convolutions, likewise, and its alpha; weight and
bias of the last convolution. `branches` holds the numbers of convolutions. What is kept for backward is x and z, which
on the CPU is float32; everything else is formed anew from them. Backward returns the parameters' gradients as one
float32 tensor, in the order of params.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..native import lga as native
from ..parameters import unflatten
from ..reference.lga import Affine, Branch, Separable
from .depthwise import depthwise_convolutions
from .gram_attention import gram_attention
from .registry import dense, once, register, watched
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
    cast = partial(_cast, dtype=dtype)
    scales = [Separable(*map(cast, scale)) for scale in scales]
    branches = [Branch([Separable(*map(cast, conv)) for conv in convs], alpha) for convs, alpha in branches]
    arguments = (x.to(dtype), scales, cast(scale_attention), position_encoding.to(dtype), branches, cast(out_conv))
    run = _whole if backend == "native" else _composed
    return run(*arguments, num_heads, contraction)


def _cast(affine: Affine, dtype: torch.dtype) -> Affine:
    weight, bias = affine
    return weight.to(dtype), weight.new_zeros(weight.shape[0], dtype=dtype) if bias is None else bias.to(dtype)


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
    """Run the registered operators, recording a graph only where a gradient is wanted."""
    params = [t for scale in scales for affine in scale for t in affine]
    params += [*scale_attention, position_encoding]
    for convs, alpha in branches:
        params += [*(t for conv in convs for affine in conv for t in affine), alpha.to(x.dtype)]
    params += out_conv
    x = dense(x)
    options = len(scales), [len(convs) for convs, _ in branches], num_heads, contraction == "released"
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
        return _Recorded.apply(options, x, *params)
    return forward(x, params, options, False)[0]


def forward(x: Tensor, params: Sequence[Tensor], options: tuple, save: bool) -> tuple[Tensor, Tensor]:
    return FORWARD(x, params, *options, save) if watched(x) else native.forward(x, params, options, save)


def _forward(x, params, *rest):
    *options, save = rest
    return native.forward(dense(x), params, tuple(options), save)


def _backward(grad_out, x, z, params, *rest):
    *options, need_x, need_params = rest
    x = dense(x)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    grad_out, z = (t.contiguous(memory_format=layout) for t in (grad_out, z))
    return native.backward(grad_out, x, z, params, tuple(options), need_x, need_params)


def _fake_forward(x, params, *rest):
    out = torch.empty_like(dense(x))
    return out, torch.empty_like(out, dtype=torch.float32) if rest[-1] else x.new_empty(0, dtype=torch.float32)


def _fake_backward(grad_out, x, z, params, *rest):
    *_, need_x, need_params = rest
    size = sum(p.numel() for p in params) if need_params else 0
    return torch.empty_like(dense(x)) if need_x else x.new_empty(0), x.new_empty(size, dtype=torch.float32)


_OPTIONS = "int num_scales, int[] branches, int num_heads, bool released"
FORWARD = register(
    f"lga_forward(Tensor x, Tensor[] params, {_OPTIONS}, bool save) -> (Tensor out, Tensor z)", _forward, _fake_forward
)
BACKWARD = register(
    f"lga_backward(Tensor grad_out, Tensor x, Tensor z, Tensor[] params, {_OPTIONS}, bool need_x, bool need_params) "
    "-> (Tensor grad_x, Tensor grad_params)",
    _backward,
    _fake_backward,
)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, options, x, *params):
        out, z = forward(x, params, options, True)
        ctx.options = options
        ctx.save_for_backward(x, z, *params)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, z, *params = ctx.saved_tensors
        need_x, *needs = ctx.needs_input_grad[1:]
        run = BACKWARD if watched(x) else _backward
        grad_x, flat = run(grad_out, x, z, params, *ctx.options, need_x, any(needs))
        grads = [grad_x, *(unflatten(flat, params) if any(needs) else params)]
        grads = [g if need else None for g, need in zip(grads, ctx.needs_input_grad[1:], strict=True)]
        return None, *once(grads, grad_out, x, *params)


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
    shares = torch.cat([(branch.alpha.float() / len(branch.convs)).expand(len(branch.convs)) for branch in branches])
    mixed = gram_attention(
        features, [conv.pointwise for conv in convs], shares, x, num_heads, contraction
    )
    return F.conv2d(mixed, *out_conv)
