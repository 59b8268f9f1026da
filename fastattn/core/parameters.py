"""An operation's flat parameters: their sizes, the one dtype that the fast paths take, and their gradients."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .reference import Affine

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the fast paths
_is_contiguous, _numel, _data_ptr = Tensor.is_contiguous, Tensor.numel, Tensor.data_ptr  # fast under map
_is_cpu = Tensor.is_cpu.__get__  # type: ignore[attr-defined]


def cast(affine: Affine, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weight and bias in a dtype, a bias of zeros where there is none."""
    weight, bias = affine
    return weight.to(dtype), weight.new_zeros(weight.shape[0], dtype=dtype) if bias is None else bias.to(dtype)


def common_dtype(x: Tensor, params: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype that the fast paths take the parameters in: theirs, if it is x's or float32."""
    return x.dtype if [p.dtype for p in params].count(x.dtype) == len(params) else torch.float32


def prepare(x: Tensor, params: Sequence[Tensor]) -> tuple[torch.dtype, Sequence[Tensor], tuple[int, ...]]:
    """Return the parameters contiguous and of one dtype, with that dtype and their numbers of elements."""
    dtype = x.dtype
    if [p.dtype for p in params].count(dtype) != len(params) or not all(map(_is_contiguous, params)):
        dtype = common_dtype(x, params)
        params = [p.to(dtype).contiguous() for p in params]
    return dtype, params, tuple(map(_numel, params))


def addresses(x: Tensor, params: Sequence[Tensor]) -> list[int]:
    """Return where the parameters lie; RuntimeError unless x and all of them have memory, of the CPU."""
    found = [*map(_data_ptr, params)]
    if 0 in found or not (x.is_cpu and x.data_ptr() and all(map(_is_cpu, params))):
        check_memory(x, *params)
    return found


def check_devices(device: torch.device, others: Collection[torch.device]) -> None:
    """RuntimeError unless x's device is the only one."""
    if any(other != device for other in others):
        found = ", ".join(sorted({str(other) for other in others}))
        raise RuntimeError(f"all tensors must be on one device, but x is on {device} and the parameters are on {found}")


def check_memory(x: Tensor, *others: Tensor) -> None:
    """RuntimeError unless the tensors are on x's device and have memory, as what takes raw pointers needs."""
    if not all(map(_is_cpu, (x, *others))):
        check_devices(x.device, {other.device for other in others})
    if 0 in map(_data_ptr, (x, *others)) and any(t.data_ptr() == 0 and t.numel() for t in (x, *others)):
        raise RuntimeError("a tensor has no memory: its storage was freed, or it is the zero that autograd makes")


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
