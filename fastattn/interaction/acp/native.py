"""Aggressive convolution pooling by the compiled extension."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import parameters
from ...core.native import DTYPES, extension, gradients, run


@functools.lru_cache(maxsize=512)
def _plan(shape, shapes, pool_size, x_dtype, param_dtype, channels_last):
    """Make the extension's plan for one signature; ValueError if the parameters' shapes do not fit it."""
    batch, channels, height, width = shape
    kernels = [weight[2] for weight in shapes[:-2:2]]
    summed = shapes[-2][1] == channels
    expected = [part for kernel in kernels for part in ((channels, 1, kernel, kernel), (channels,))]
    expected += [(channels, channels * (1 if summed else len(kernels) + 1), 1, 1), (channels,)]
    if tuple(expected) != shapes:
        raise ValueError(f"parameters of shapes {shapes} do not fit {channels} channels: expected {tuple(expected)}")
    dtypes = DTYPES[x_dtype], DTYPES[param_dtype]
    return extension().AcpPlan(batch, channels, height, width, kernels, pool_size, summed, *dtypes, channels_last)


def _prepare(x: Tensor, params: Sequence[Tensor], pool_size: int):
    """Return the plan of this call and its parameters, contiguous and of x's dtype or float32, with their addresses."""
    dtype, params, _ = parameters.prepare(x, params)
    shapes = tuple(tuple(p.shape) for p in params)
    plan = _plan(tuple(x.shape), shapes, pool_size, x.dtype, dtype, not x.is_contiguous())
    return plan, params, parameters.addresses(x, params)


def saved(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Return what forward keeps for backward besides x: nothing."""
    return x.new_empty(0, dtype=torch.float32)


def forward(x: Tensor, params: Sequence[Tensor], pool_size: int, save: bool) -> tuple[Tensor, Tensor]:
    """Run the forward on a dense CPU tensor x (B, C, H, W); return (out, saved)."""
    plan, params, pointers = _prepare(x, params, pool_size)
    kept = saved(x, params)
    return run(plan, x, kept, pointers), kept


def backward(
    grad_out: Tensor,
    x: Tensor,
    saved: Tensor,
    params: Sequence[Tensor],
    pool_size: int,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor]:
    """Run the backward; return (grad_x, all parameters' gradients in float32), empty where not needed."""
    plan, params, pointers = _prepare(x, params, pool_size)
    return gradients(plan, grad_out, x, saved, params, pointers, need_x, need_params)
