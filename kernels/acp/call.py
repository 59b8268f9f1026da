"""Aggressive convolution pooling: convolution and pooling level by level, then one projection of all levels. Backward
runs it the other way, with the products of matrices by the library."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import conv_pool
from .pyramid_project import project
from .pyramid_project_backward import resized_sums


def is_channels_last(x: Tensor) -> bool:
    """Return whether x, a dense map or tokens, has neighbouring channels."""
    return x.dim() == 3 or not x.is_contiguous()


def as_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return x, or the view (B, C, H, W) of the tokens behind the prefix."""
    if x.dim() == 4:
        return x
    return x[:, x.shape[1] - size[0] * size[1] :].unflatten(1, size).permute(0, 3, 1, 2)


def forward(
    x: Tensor, size: tuple[int, int], weights: Sequence[Tensor], biases: Sequence[Tensor], proj_weight: Tensor,
    proj_bias: Tensor, pool_size: int, residual: bool, save: bool, dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
    """Return the result in a dtype, and what is to be saved: the levels, in that of the weights, and the places of
    their maxima.

    x is a map (B, C, H, W), contiguous or channels_last, or contiguous tokens (B, prefix + H * W, C); the result lies
    as x does.
    """
    channels_last = is_channels_last(x)
    source = as_map(x, size)
    levels, indices = [], []
    for weight, bias in zip(weights, biases, strict=True):
        level, index = conv_pool.forward(source, channels_last, weight, bias, pool_size, save)
        levels.append(level)
        indices.append(index)
        source = level
    out = torch.empty_like(x, dtype=dtype)
    project(x, size, channels_last, levels, proj_weight, proj_bias, residual, out)
    return out, levels, indices


def backward(
    grad: Tensor, x: Tensor, size: tuple[int, int], levels: Sequence[Tensor], indices: Sequence[Tensor],
    weights: Sequence[Tensor], proj_weight: Tensor, pool_size: int, residual: bool, need_x: bool, need_params: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Return the gradient of x, and those of the parameters: of each layer, weight and then bias, flat, and of the
    projection's weight and bias; empty unless needed.

    grad lies as x does.
    """
    channels_last = is_channels_last(x)
    count = len(levels) + 1
    matrices = proj_weight.flatten(1).split(proj_weight.shape[0], dim=1)
    matrices = [matrices[l % len(matrices)] for l in range(count)]
    sums = resized_sums(grad, size, channels_last, levels)
    sources = [as_map(x, size), *levels]
    layers: list[Tensor] = []
    projection: list[Tensor] = []
    if need_params:
        own = as_map(grad, size)
        pairs = zip([own.to(proj_weight.dtype), *sums], sources, strict=True)
        parts = [_weight_gradient(given, source, channels_last) for given, source in pairs]
        concat = proj_weight.shape[1] > proj_weight.shape[0]
        d_weight = torch.cat(parts, dim=1) if concat else sum(parts[1:], start=parts[0])
        # of the gradient itself: sums that were rounded to 16 bits would lose what cancels
        projection = [d_weight.view(proj_weight.shape), own.sum((0, 2, 3)).to(proj_weight.dtype)]
    d_level = _input_gradient(sums[-1], matrices[-1], channels_last)
    grad_x = x.new_empty(0)
    for l in range(len(levels) - 1, -1, -1):
        below = None
        if l:
            below = _input_gradient(sums[l - 1], matrices[l], channels_last)
        elif need_x:
            grad_x = _with_prefix(grad, x, size, matrices[0], residual)
            below = as_map(grad_x, size)
        flat = conv_pool.backward(
            d_level, indices[l], sources[l], channels_last, weights[l], pool_size, below, need_params
        )
        if need_params:
            layers.insert(0, flat)
        if below is not None:
            d_level = below
    return grad_x, [*layers, *projection]


def _rows(x: Tensor) -> Tensor:
    """Return the pixels of a channels_last map as rows of channels."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _weight_gradient(grad: Tensor, source: Tensor, channels_last: bool) -> Tensor:
    """Return the gradient of the matrix that maps the pixels of a source."""
    source = source.to(grad.dtype)
    if channels_last:
        return _rows(grad).T @ _rows(source)
    return torch.bmm(grad.flatten(2), source.flatten(2).mT).sum(0)


def _input_gradient(grad: Tensor, matrix: Tensor, channels_last: bool) -> Tensor:
    """Return the gradient of what a matrix maps, in the format of grad."""
    if channels_last:
        rows = _rows(grad) @ matrix
        return rows.view(grad.shape[0], *grad.shape[2:], -1).permute(0, 3, 1, 2)
    return torch.matmul(matrix.T, grad.flatten(2)).view(grad.shape)


def _with_prefix(grad: Tensor, x: Tensor, size: tuple[int, int], matrix: Tensor, residual: bool) -> Tensor:
    """Return the gradient of x but for its way through the levels, in the format of x."""
    narrow = grad.to(matrix.dtype)
    if x.dim() == 4:
        found = _input_gradient(narrow, matrix, is_channels_last(x))
        return (found + grad if residual else found).to(x.dtype)
    rows = narrow.flatten(0, 1)
    if residual and grad.dtype == matrix.dtype:
        found = torch.addmm(rows, rows, matrix)
    else:
        found = rows @ matrix
    found = found.view(x.shape)
    if residual and grad.dtype != matrix.dtype:
        found = found + grad
    found = found.to(x.dtype)
    prefix = x.shape[1] - size[0] * size[1]
    found[:, :prefix] = grad[:, :prefix]
    return found
