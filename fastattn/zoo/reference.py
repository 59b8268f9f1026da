"""What a description says, in eager PyTorch."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .description import POOLS, PRODUCTS, STEPS

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
}


def gate(
    x: Tensor, params: Sequence[Tensor], program: Sequence[int], numbers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return x (B, C, H, W) gated as a program says, and the means and variances that it was normalised by, where those
    were the batch's."""
    of_batch: list[Tensor] = []
    rest = iter(params)
    pooled = z = _pool(x, POOLS[program[0]], rest)  # [B, C, columns]
    for step, count, number in zip(program[4::2], program[5::2], numbers[1:], strict=True):
        z = _step(z, STEPS[step], count, number, rest, x.shape[2:], of_batch)
    product = PRODUCTS[program[1]]
    if product in ("channels", "space"):
        x = x * z[..., None]
        if product == "space":
            x = x * _space(x, program[2], bool(program[3]), numbers[0], rest, of_batch)
    elif product == "axes":
        rows, columns = z.split([*x.shape[2:]], dim=2)
        x = x * rows[..., None] * columns[..., None, :]
    else:
        q, a, b = (column[..., None, None] for column in z.unbind(dim=2))
        d = x - pooled[..., :1, None]
        x = x * ((q * d + a) * d + b).sigmoid()
        x = interleave(x) if product == "shuffled" else x
    return x, torch.cat(of_batch) if of_batch else x.new_empty(0)


def interleave(x: Tensor) -> Tensor:
    """Return the channels of x (B, C, H, W) with their halves interleaved."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _pool(x: Tensor, pool: str, params: Iterator[Tensor]) -> Tensor:
    if pool == "axes":
        return torch.cat([x.mean(dim=3), x.mean(dim=2)], dim=2)
    if pool == "weighted":
        return (x * next(params)).sum(dim=(2, 3))[..., None]
    mean = x.mean(dim=(2, 3))
    if pool == "mean":
        return mean[..., None]
    other = x.amax(dim=(2, 3)) if pool == "mean_max" else (x - mean[..., None, None]).square().mean(dim=(2, 3))
    return torch.stack([mean, other], dim=2)


def _step(
    z: Tensor, step: str, count: int, number: float, params: Iterator[Tensor], size: Sequence[int],
    of_batch: list[Tensor],
) -> Tensor:  # fmt: skip
    """Return what a step makes of columns z (B, C, columns) of a map of this size."""
    if step in _ACTIVATIONS:
        return _ACTIVATIONS[step](z)
    if step in ("linear", "linear_no_bias"):
        return _linear(z, next(params), next(params) if step == "linear" else None)
    if step == "along_channels":
        return F.conv1d(z.mT, next(params).view(1, 1, -1), padding=count // 2).mT
    if step.startswith("batch_norm"):
        return _batch_norm(z, step.endswith("of_batch"), number, params, of_batch)
    if step == "sum":
        return z.sum(dim=2, keepdim=True)
    if step == "energy":
        pixels = size[0] * size[1]
        q = 1 / (4 * (z[..., 1] * (pixels / max(pixels - 1, 1)) + number))
        return torch.stack([q, torch.zeros_like(q), torch.full_like(q, 0.5)], dim=2)
    if step == "shuffle":
        return _shuffle(z, count, number, [next(params).flatten() for _ in range(6)])
    parts = z.split([*size], dim=2)
    if step == "linear_by_axis":
        return torch.cat([_linear(part, next(params), next(params)) for part in parts], dim=2)
    if step == "along_axes":
        taps = next(params).view(-1, 1, count)
        return torch.cat([F.conv1d(part, taps, padding=count // 2, groups=len(taps)) for part in parts], dim=2)
    weight, bias = next(params), next(params)
    return torch.cat([F.group_norm(part, count, weight, bias, number) for part in parts], dim=2)


def _linear(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(z.mT, weight.flatten(1), bias).mT


def _batch_norm(z: Tensor, training: bool, epsilon: float, params: Iterator[Tensor], of_batch: list[Tensor]) -> Tensor:
    weight, bias = next(params), next(params)
    if not training:
        return F.batch_norm(z, next(params), next(params), weight, bias, eps=epsilon)
    axes = [0, *range(2, z.dim())]
    of_batch += [z.detach().mean(dim=axes), z.detach().var(dim=axes, correction=0)]
    return F.batch_norm(z, None, None, weight, bias, training=True, eps=epsilon)


def _shuffle(z: Tensor, groups: int, epsilon: float, params: Sequence[Tensor]) -> Tensor:
    """Return q, a and b (B, C, 3): a group's first half of channels is gated by its mean, times a weight, plus a bias,
    its second pixel by pixel after a normalisation."""
    weight, bias, pixel_weight, pixel_bias, norm_weight, norm_bias = params
    mean, variance = z.unflatten(1, (groups, 2, -1)).unbind(dim=-1)  # [B, groups, 2, C / 2 groups]
    by_mean = weight * mean[:, :, 0] + bias
    slope = pixel_weight * norm_weight / (variance[:, :, 1] + epsilon).sqrt()
    shift = (pixel_weight * norm_bias + pixel_bias).expand_as(slope)
    a = torch.stack([torch.zeros_like(by_mean), slope], dim=2).flatten(1)
    b = torch.stack([by_mean, shift], dim=2).flatten(1)
    return torch.stack([torch.zeros_like(a), a, b], dim=2)


def _space(
    x: Tensor, kernel: int, training: bool, epsilon: float, params: Iterator[Tensor], of_batch: list[Tensor]
) -> Tensor:
    both = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
    logits = F.conv2d(both, next(params).view(1, 2, kernel, kernel), padding=kernel // 2)
    return _batch_norm(logits, training, epsilon, params, of_batch).sigmoid()
