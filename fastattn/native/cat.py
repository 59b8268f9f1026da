"""Conceptual attention by the compiled extension."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import parameters
from . import DTYPES, extension, gradients

_data_ptr = Tensor.data_ptr  # fast under map


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
    """Return the plan of this call and its parameters, contiguous and of one dtype: x's or float32."""
    dtype, params, _ = parameters.prepare(x, params)
    return _plan(tuple(x.shape), tuple(tuple(p.shape) for p in params), x.dtype, dtype), params


def forward(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Run the forward on contiguous CPU tokens x (B, N, C)."""
    plan, params = _prepare(x, params)
    out = torch.empty_like(x)
    plan.forward(x.data_ptr(), out.data_ptr(), list(map(_data_ptr, params)), torch.get_num_threads())
    return out


def backward(
    grad_out: Tensor, x: Tensor, params: Sequence[Tensor], need_x: bool, need_params: bool
) -> tuple[Tensor, Tensor]:
    """Run the backward; return (grad_x, all parameters' gradients in float32), empty where not needed."""
    plan, params = _prepare(x, params)
    return gradients(plan, (grad_out, x), x, params, need_x, need_params)
