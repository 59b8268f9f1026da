"""SCSA, SMSA and PCSA on Triton: the calls. What they launch is in `plan`, the algebra in `fastattn.reference`."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import parameters
from ..common.run import run
from .plan import Plan, saved_size

__all__ = ["backward", "forward", "plan", "saved_size"]


@functools.lru_cache(maxsize=512)
def plan(
    spatial, channel, shape, numels, options, x_dtype, out_dtype, param_dtype, channels_last, device, alignment
) -> Plan:
    """Return the plan of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    return Plan(spatial, channel, shape, numels, options, x_dtype, out_dtype, param_dtype, channels_last, device)


def _prepare(operation, x: Tensor, params: Sequence[Tensor], options: tuple, out_dtype: torch.dtype, alignment: int):
    dtype, params, numels = parameters.prepare(x, params)
    return plan(
        operation.spatial, operation.channel, x.shape, numels, options, x.dtype, out_dtype, dtype,
        not x.is_contiguous(), x.device, alignment,
    ), params  # fmt: skip


def forward(
    operation, x: Tensor, params: Sequence[Tensor], options: tuple, out_dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    """Run the forward of an operation on a dense tensor x (B, C, H, W); return (out, saved)."""
    ready, params = _prepare(operation, x, params, options, out_dtype, x.data_ptr() & 15)
    out = torch.empty_like(x, dtype=out_dtype)
    saved = x.new_empty((ready.batch, ready.saved_size), dtype=torch.float32)
    params = tuple(params)
    run(ready.forward, (x, out, saved, *ready.grouped(params)), (x, out, saved, *params))
    return out, saved if save else saved.new_empty(0)


def backward(
    operation, grad_out: Tensor, x: Tensor, saved: Tensor, params: Sequence[Tensor], options: tuple,
    need_x: bool, need_params: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the backward of an operation; return (grad_x, all parameters' gradients), empty where not needed."""
    alignment = (x.data_ptr() & 15) | (grad_out.data_ptr() & 15) << 4 | (saved.data_ptr() & 15) << 8
    ready, params = _prepare(operation, x, params, options, grad_out.dtype, alignment)
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    scratch = x.new_empty((ready.batch, ready.scratch_size), dtype=torch.float32)
    grad_params = params[0].new_empty(ready.sizes["GRADS"] if need_params else 0)
    launches = ready.backward if need_x and need_params else ready.part_of_backward(need_x, need_params)
    params, given = tuple(params), (grad_out, x, saved, scratch, grad_x, grad_params)
    run(launches, (*given, *ready.grouped(params)), (*given, *params))
    return grad_x, grad_params
