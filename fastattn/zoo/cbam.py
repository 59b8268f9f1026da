"""The convolutional block attention module."""

import torch
from torch import Tensor, nn

from ..core.module import Holder
from .channel_gates import make_divisible, with_biases
from .description import Description, Step
from .module import Gate


class _Channels(Holder):
    """The gate of the channels."""

    def __init__(self, channels: int, hidden: int, bias: bool):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.gate = nn.Sigmoid()


class _Convolution(Holder):
    """The convolution of the pixels' means and maxima, and its normalisation."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1)


class _Pixels(Holder):
    """The gate of the pixels."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.conv = _Convolution(kernel_size)
        self.gate = nn.Sigmoid()


class CBAM(Gate):
    """Convolutional block attention (arXiv 1807.06521): the channels of x (B, channels, H, W) are gated by a bottleneck
    on their means and maxima, then the pixels by a convolution of theirs.

    Constructor and state dict are those of timm's `CbamModule`; `mlp_bias` is True in the authors' code. ValueError for
    an even kernel.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        *,
        mlp_bias: bool = False,
    ):
        super().__init__()
        if spatial_kernel_size % 2 == 0 or spatial_kernel_size < 1:
            raise ValueError(f"spatial_kernel_size must be odd, got {spatial_kernel_size}")
        hidden = rd_channels or make_divisible(channels * rd_ratio, rd_divisor)
        self.channels = channels
        self.channel = _Channels(channels, hidden, mlp_bias)
        self.spatial = _Pixels(spatial_kernel_size)
        linear = "linear" if mlp_bias else "linear_no_bias"
        steps = Step(linear, hidden), Step("relu"), Step(linear, channels), Step("sum"), Step("sigmoid")
        self.description = Description("mean_max", steps, "space", spatial_kernel_size, self.norm().eps)
        self._note_children()

    def parameters_in_order(self) -> list[Tensor]:
        conv = self.spatial.conv
        return [*with_biases(self.channel.fc1, self.channel.fc2), conv.conv.weight, *with_biases(conv.bn)]

    def norm(self) -> nn.BatchNorm2d:
        return self.spatial.conv.bn

    def normalised(self, x: Tensor) -> int:
        return x.shape[0] * x.shape[2] * x.shape[3]

    def _through_children(self, x: Tensor) -> Tensor:
        channel, spatial = self.channel, self.spatial
        means, maxima = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        by_mean, by_maximum = (channel.fc2(channel.act(channel.fc1(z))) for z in (means, maxima))
        x = x * channel.gate(by_mean + by_maximum)
        both = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * spatial.gate(spatial.conv.bn(spatial.conv.conv(both)))
