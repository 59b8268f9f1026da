"""Local-global attention by the compiled extension."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import parameters
from ..core.native import DTYPES, extension, gradients, run


@functools.lru_cache(maxsize=512)
def _plan(shape, shapes, num_scales, branches, num_heads, released, x_dtype, param_dtype, channels_last):
    """Make the extension's plan for one signature; ValueError if the parameters' shapes do not fit it."""
    batch, dim, height, width = shape

    def separable(kernel, outputs, groups):
        return (dim, 1, kernel, kernel), (dim,), (outputs, dim // groups, 1, 1), (outputs,)

    expected = [shape for _ in range(num_scales) for shape in separable(3, dim, 1)]
    expected += [(num_scales + 1, dim, 1, 1), (num_scales + 1,)]
    encoding = shapes[len(expected)]
    expected.append((1, dim, *encoding[2:]))
    kernels = []
    for count in branches:
        kernels.append([shapes[len(expected) + 4 * i][2] for i in range(count)])
        expected += [shape for kernel in kernels[-1] for shape in separable(kernel, 3 * dim, num_heads)]
        expected.append((1,))
    expected += [(dim, dim, 1, 1), (dim,)]
    if tuple(expected) != shapes:
        raise ValueError(f"parameters of shapes {shapes} do not fit {dim} channels: expected {tuple(expected)}")
    return extension().LgaPlan(
        *(batch, dim, height, width, num_heads, num_scales, kernels, *encoding[2:], released),
        *(DTYPES[x_dtype], DTYPES[param_dtype], channels_last),
    )


def _prepare(x: Tensor, params: Sequence[Tensor], options: Sequence):
    """Return the plan of this call and its parameters, contiguous and of x's dtype or float32, with their addresses."""
    dtype, params, _ = parameters.prepare(x, params)
    shapes = tuple(tuple(p.shape) for p in params)
    num_scales, branches, *rest = options
    signature = (tuple(x.shape), shapes, num_scales, tuple(branches), *rest)
    plan = _plan(*signature, x.dtype, dtype, not x.is_contiguous())
    return plan, params, parameters.addresses(x, params)


def saved(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Return an empty tensor for z, which lies as x does."""
    return torch.empty_like(x, dtype=torch.float32)


def forward(x: Tensor, params: Sequence[Tensor], *rest) -> tuple[Tensor, Tensor]:
    """Run the forward on a dense CPU tensor x (B, D, H, W), with the options and whether to save z; return (out, z), z
    empty unless it is to be saved."""
    *options, save = rest
    plan, params, pointers = _prepare(x, params, options)
    z = saved(x, params) if save else x.new_empty(0, dtype=torch.float32)
    return run(plan, x, z, pointers), z


def backward(grad_out: Tensor, x: Tensor, z: Tensor, params: Sequence[Tensor], *rest) -> tuple[Tensor, Tensor]:
    """Run the backward, with the options and whether x's and the parameters' gradients are needed; return (grad_x, all
    parameters' gradients in float32), empty where not needed."""
    *options, need_x, need_params = rest
    plan, params, pointers = _prepare(x, params, options)
    if z.stride() != x.stride():
        z = saved(x, params).copy_(z)
    return gradients(plan, grad_out, x, z, params, pointers, need_x, need_params)
