"""The gates by the compiled extension."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import parameters
from ..core.native import DTYPES, extension, gradients, run
from .description import saved_size


@functools.lru_cache(maxsize=512)
def _plan(shape, program, numbers, numels, x_dtype, param_dtype, channels_last):
    """Make the extension's plan for one signature; ValueError if the parameters do not fit it."""
    dtypes = DTYPES[x_dtype], DTYPES[param_dtype]
    return extension().GatesPlan(*shape, program, numbers, numels, *dtypes, channels_last)


def _prepare(x: Tensor, params: Sequence[Tensor], program: Sequence[int], numbers: Sequence[float]):
    """Return the plan of this call and its parameters, contiguous and of x's dtype or float32, with their addresses."""
    dtype, params, numels = parameters.prepare(x, params)
    channels_last = not x.is_contiguous()
    plan = _plan(tuple(x.shape), tuple(program), tuple(numbers), numels, x.dtype, dtype, channels_last)
    return plan, params, parameters.addresses(x, params)


def saved(x: Tensor, program: Sequence[int]) -> Tensor:
    """Return an empty tensor for what forward keeps for backward besides x."""
    return x.new_empty(saved_size(x.shape, program), dtype=torch.float32)


def forward(
    x: Tensor, params: Sequence[Tensor], program: Sequence[int], numbers: Sequence[float], save: bool
) -> tuple[Tensor, Tensor]:
    """Run the forward on a dense CPU tensor x (B, C, H, W); return (out, saved), empty if nothing is to be saved."""
    plan, params, pointers = _prepare(x, params, program, numbers)
    kept = x.new_empty(plan.saved_size if save else 0, dtype=torch.float32)
    return run(plan, x, kept, pointers), kept


def backward(
    grad_out: Tensor,
    x: Tensor,
    saved: Tensor,
    params: Sequence[Tensor],
    program: Sequence[int],
    numbers: Sequence[float],
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor]:
    """Run the backward; return (grad_x, all parameters' gradients in float32), empty where not needed."""
    plan, params, pointers = _prepare(x, params, program, numbers)
    return gradients(plan, grad_out, x, saved, params, pointers, need_x, need_params)
