"""Conceptual attention by the compiled extension."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import parameters
from ...core.native import DTYPES, extension, gradients, run


@functools.lru_cache(maxsize=512)
def _plan(shape, shapes, x_dtype, param_dtype):
    """Make the extension's plan for one signature; ValueError if the parameters' shapes do not fit it."""
    batch, tokens, channels = shape
    concepts = shapes[0][0]
    expected = ((concepts, channels), *[(channels, channels), (channels,)] * 2)
    if expected != shapes:
        raise ValueError(f"parameters of shapes {shapes} do not fit {channels} channels: expected {expected}")
    return extension().CatPlan(batch, tokens, channels, concepts, DTYPES[x_dtype], DTYPES[param_dtype])


def _prepare(x: Tensor, params: Sequence[Tensor]):
    """Return the plan of this call and its parameters, contiguous and of x's dtype or float32, with their addresses."""
    dtype, params, _ = parameters.prepare(x, params)
    plan = _plan(tuple(x.shape), tuple(tuple(p.shape) for p in params), x.dtype, dtype)
    return plan, params, parameters.addresses(x, params)


def saved(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Return an empty tensor for what forward keeps of each sample, as the plan's `saved_size` counts it."""
    (batch, tokens, channels), concepts = x.shape, params[0].shape[0]
    size = 2 * ((concepts + 15) // 16 * 16) + 2 * tokens + 3 * concepts * channels
    return x.new_empty((batch, size), dtype=torch.float32)


def forward(x: Tensor, params: Sequence[Tensor], save: bool) -> tuple[Tensor, Tensor]:
    """Run the forward on contiguous CPU tokens x (B, N, C); return (out, saved), saved empty unless it is wanted."""
    plan, params, pointers = _prepare(x, params)
    kept = saved(x, params) if save else x.new_empty(0, dtype=torch.float32)
    return run(plan, x, kept, pointers), kept


def backward(
    grad_out: Tensor, x: Tensor, saved: Tensor, params: Sequence[Tensor], need_x: bool, need_params: bool
) -> tuple[Tensor, Tensor]:
    """Run the backward; return (grad_x, all parameters' gradients in float32), empty where not needed."""
    plan, params, pointers = _prepare(x, params)
    return gradients(plan, grad_out, x, saved, params, pointers, need_x, need_params)
