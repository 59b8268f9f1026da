"""SCSA and its parts by the compiled extension."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import parameters
from ..core.native import DTYPES, extension, gradients, run

_NOTHING = torch.empty(0, dtype=torch.float32)


@functools.lru_cache(maxsize=512)
def _plan(spatial, channel, shape, numels, options, x_dtype, param_dtype, channels_last):
    """Make the extension's plan for one signature; ValueError if the parameters' sizes do not fit it."""
    batch, channels, height, width = shape
    kernels, qkv_bias = parameters.sizes(spatial, channel, channels, numels)
    head_num, window, mode, gate = options if channel else (1, -1, "avg_pool", *options)
    return extension().ScsaPlan(
        spatial,
        channel,
        batch,
        channels,
        height,
        width,
        kernels,
        head_num,
        height if window == -1 else window,
        width if window == -1 else window,
        mode == "max_pool" and window != -1,
        gate == "softmax",
        qkv_bias,
        DTYPES[x_dtype],
        DTYPES[param_dtype],
        channels_last,
    )


def _prepare(operation, x: Tensor, params: Sequence[Tensor], options: tuple):
    """Return the plan of this call and its parameters, contiguous and of x's dtype or float32, with their addresses."""
    dtype, params, numels = parameters.prepare(x, params)
    channels_last = not x.is_contiguous()
    plan = _plan(operation.spatial, operation.channel, x.shape, numels, options, x.dtype, dtype, channels_last)
    return plan, params, parameters.addresses(x, params)


def saved_size(spatial: bool, channel: bool, shape: Sequence[int], options: tuple) -> int:
    """Return how many floats per sample forward saves for backward."""
    _, channels, height, width = shape
    size = height + width if spatial else 0
    if channel:
        _, window, mode, _ = options
        pixels = 1 if window == -1 else (height // window) * (width // window)
        size += pixels * (2 if mode == "max_pool" and window != -1 else 1) + 3
    return channels * size


def forward(
    operation, x: Tensor, params: Sequence[Tensor], options: tuple, out_dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    """Run the forward of an operation on a dense CPU tensor x (B, C, H, W) of out's dtype; return (out, saved)."""
    if out_dtype is not x.dtype:
        raise ValueError(f"native writes x's own dtype: x is {x.dtype}, out {out_dtype}")
    plan, params, pointers = _prepare(operation, x, params, options)
    saved = (
        torch.empty((x.shape[0], plan.saved_size), dtype=torch.float32, device=x.device)
        if save
        else torch.empty_like(_NOTHING)
    )
    return run(plan, x, saved, pointers), saved


def backward(
    operation,
    grad_out: Tensor,
    x: Tensor,
    saved: Tensor,
    params: Sequence[Tensor],
    options: tuple,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor]:
    """Run the backward of an operation; return (grad_x, all parameters' gradients), empty where not needed."""
    plan, params, pointers = _prepare(operation, x, params, options)
    return gradients(plan, grad_out, x, saved, params, pointers, need_x, need_params, params[0].dtype)
