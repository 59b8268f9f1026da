"""Conceptual attention by the compiled extension."""

import functools
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .. import parameters
from . import DTYPES, extension

_data_ptr, _numel = Tensor.data_ptr, Tensor.numel  # fast under map


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
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grads = x.new_empty(sum(map(_numel, params)) if need_params else 0, dtype=torch.float32)
    places = accumulate((4 * p.numel() for p in params[:-1]), initial=grads.data_ptr()) if need_params else ()
    plan.backward(
        grad_out.data_ptr(),
        x.data_ptr(),
        list(map(_data_ptr, params)),
        grad_x.data_ptr() if need_x else 0,
        list(places),
        torch.get_num_threads(),
    )
    return grad_x, grads
