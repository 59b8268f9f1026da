"""The modules of the zoo that PyTorch's operators serve: EMA and CPCA."""

from math import gcd

import torch
from torch import Tensor, nn

from ..core.module import Holder
from .module import Layers

STRIPS = 7, 11, 21


class EMA(Layers):
    """Efficient multi-scale attention (arXiv 2305.13563, section 3): the pixels of each group of channels of x
    (B, channels, H, W), all groups alike, are gated by the agreement of two branches, one gated by rows and columns,
    one convolved 3x3.

    Constructor and state dict are the released ones; where `factor` does not divide the channels: as many groups as
    divide both.
    """

    operation = "ema"

    def __init__(self, channels: int, c2: int | None = None, factor: int = 32):
        super().__init__()
        self.channels, self.groups = channels, gcd(factor, channels)
        width = channels // self.groups
        self.gn = nn.GroupNorm(width, width)
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)
        self._note_children()

    def _through_children(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        parts = x.unflatten(1, (self.groups, -1)).flatten(0, 1)  # [B * groups, c, H, W]
        strips = torch.cat([parts.mean(dim=3), parts.mean(dim=2)], dim=2)  # [B * groups, c, H + W]
        rows, columns = self.conv1x1(strips[..., None]).sigmoid().split([height, width], dim=2)
        wide = self.gn(parts * rows * columns.mT)
        near = self.conv3x3(parts)
        logits = agree(wide, near) + agree(near, wide)  # [B * groups, 1, H, W]
        return (parts * logits.sigmoid()).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}"


def agree(one: Tensor, other: Tensor) -> Tensor:
    """Return the maps (N, c, H, W) of one branch summed with the softmax of the other's means for weights,
    (N, 1, H, W)."""
    weights = one.mean(dim=(2, 3)).softmax(dim=1)
    return (weights[:, None] @ other.flatten(2)).unflatten(2, other.shape[2:])


class _Bottleneck(Holder):
    """Two layers, with fewer channels between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)


class CPCA(Layers):
    """Channel prior convolutional attention (arXiv 2306.05196): the channels of x (B, channels, H, W) are gated by a
    bottleneck on their means and maxima, then the result by depthwise convolutions of itself, 5x5 and strips of 7, 11
    and 21.

    As released, whose state dict this is, one 1x1 convolution serves at the input, on the gate and at the output.
    ValueError for fewer channels than `channelAttention_reduce`.
    """

    operation = "cpca"

    def __init__(self, channels: int, out_channels: int | None = None, channelAttention_reduce: int = 4):
        super().__init__()
        if out_channels not in (None, channels):
            raise ValueError(f"out_channels must be channels, got {channels} and {out_channels}")
        if channels < channelAttention_reduce:
            raise ValueError(f"channels must be at least reduction, got {channels} and {channelAttention_reduce}")
        self.channels = channels
        self.ca = _Bottleneck(channels, channels // channelAttention_reduce)
        self.dconv5_5 = depthwise(channels, 5, 5)
        for size in STRIPS:
            self.add_module(f"dconv1_{size}", depthwise(channels, 1, size))
            self.add_module(f"dconv{size}_1", depthwise(channels, size, 1))
        self.conv = nn.Conv2d(channels, channels, 1)
        self.act = nn.GELU()
        self._note_children()

    def _through_children(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        means, maxima = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        by_mean, by_maximum = (self.ca.fc2(self.ca.fc1(z).relu()).sigmoid() for z in (means, maxima))
        x = x * (by_mean + by_maximum)
        near = self.dconv5_5(x)
        strips = [self.get_submodule(f"dconv{size}_1")(self.get_submodule(f"dconv1_{size}")(near)) for size in STRIPS]
        return self.conv(x * self.conv(near + sum(strips)))


def depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    """Return a depthwise convolution that keeps a map's size."""
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels)
