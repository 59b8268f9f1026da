"""What the references of several families share, in eager PyTorch."""

import platform
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Affine = tuple[Tensor, Tensor | None]  # weight and bias


def known_equal(sizes: Sequence[int], others: Sequence[int]) -> bool:
    """Return whether sizes are equal for certain: symbols, which exporters would make constants, are asked nothing."""
    return all(type(size) is int for size in (*sizes, *others)) and tuple(sizes) == tuple(others)


def resize_nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, C, H, W) by nearest neighbour, floor(i * in / out)."""
    if known_equal(x.shape[2:], (height, width)):
        return x
    rows = torch.arange(height, device=x.device) * x.shape[2] // height
    columns = torch.arange(width, device=x.device) * x.shape[3] // width
    return x[:, :, rows[:, None], columns]


# On ARM with SVE oneDNN 3.7 to 3.9 lose a part of the weight's gradient (uxlfoundation/oneDNN#4124), in the kernel's
# last row, where strides leave the padding below unread; which processor and oneDNN there are is not asked
_PADS_BEFORE = platform.machine() == "aarch64"


def depthwise(x: Tensor, affine: Affine, stride: int = 1) -> Tensor:
    """Convolve each channel of x (B, C, H, W) with its own odd kernel, zeros around."""
    weight, bias = affine
    padding = weight.shape[2] // 2
    if _PADS_BEFORE and stride > 1 and x.device.type == "cpu":
        x, padding = F.pad(x, (padding,) * 4), 0
    return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])
