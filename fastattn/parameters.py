"""An operation's flat parameters: their sizes, the one dtype that the fast paths take, and their gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the fast paths
_is_contiguous, _numel = Tensor.is_contiguous, Tensor.numel  # fast under map


def common_dtype(x: Tensor, params: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype that the fast paths take the parameters in: theirs, if it is x's or float32."""
    dtype = params[0].dtype
    uniform = [p.dtype for p in params].count(dtype) == len(params)
    return dtype if uniform and (dtype is x.dtype or dtype is torch.float32) else torch.float32


def prepare(x: Tensor, params: Sequence[Tensor]) -> tuple[torch.dtype, Sequence[Tensor], tuple[int, ...]]:
    """Return the parameters contiguous and of one dtype, with that dtype and their numbers of elements."""
    dtype = common_dtype(x, params)
    if [p.dtype for p in params].count(dtype) != len(params) or not all(map(_is_contiguous, params)):
        params = [p.to(dtype).contiguous() for p in params]
    return dtype, params, tuple(map(_numel, params))


def sizes(spatial: bool, channel: bool, channels: int, numels: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Return the kernel sizes and whether q, k and v have biases; ValueError if the numbers do not fit."""
    group = channels // 4
    kernels = tuple(n // group for n in numels[:4]) if spatial else (0, 0, 0, 0)
    expected = (*(k * group for k in kernels), *[group] * 4, *[channels] * 4) if spatial else ()
    qkv_bias = channel and len(numels) == len(expected) + 8
    expected += (channels,) * (5 * channel + 3 * qkv_bias)
    if tuple(numels) != expected:
        raise ValueError(f"parameters of {tuple(numels)} elements do not fit {channels} channels: expected {expected}")
    return kernels, qkv_bias


def unflatten(flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a flat gradient in the shapes and dtypes of the parameters."""
    parts = flat.split_with_sizes(list(map(_numel, params)))
    vectors = [part if p.dim() == 1 else part.view(p.shape) for part, p in zip(parts, params, strict=True)]
    dtype = flat.dtype
    return [part if p.dtype is dtype else part.to(p.dtype) for part, p in zip(vectors, params, strict=True)]
