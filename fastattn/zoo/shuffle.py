"""Shuffle attention."""

from math import gcd

import torch
from torch import Tensor, nn

from .channel_gates import with_biases
from .description import Description, Step
from .module import Gate
from .reference import interleave


class ShuffleAttention(Gate):
    """Shuffle attention (arXiv 2102.00240): of each group of channels of x (B, channel, H, W) one half is gated by its
    means, the other pixel by pixel after a normalisation; the halves of all channels are shuffled.

    Constructor and state dict are those of the released `sa_layer`. Where `groups` does not divide channel / 2: as many
    groups as divide both. ValueError for an odd number of channels.
    """

    def __init__(self, channel: int, groups: int = 64):
        super().__init__()
        if channel % 2:
            raise ValueError(f"channels must be even, got {channel}")
        self.channels, self.groups = channel, gcd(groups, channel // 2)
        half = channel // (2 * self.groups)
        self.cweight, self.sweight = (nn.Parameter(torch.zeros(1, half, 1, 1)) for _ in range(2))
        self.cbias, self.sbias = (nn.Parameter(torch.ones(1, half, 1, 1)) for _ in range(2))
        self.gn = nn.GroupNorm(half, half)
        self.sigmoid = nn.Sigmoid()
        self.description = Description("mean_var", (Step("shuffle", self.groups, self.gn.eps),), "shuffled")
        self._note_children()

    def parameters_in_order(self) -> list[Tensor]:
        return [self.cweight, self.cbias, self.sweight, self.sbias, *with_biases(self.gn)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, self.cweight.dtype)))  # as their products are

    def _through_children(self, x: Tensor) -> Tensor:
        parts = x.unflatten(1, (self.groups, -1)).flatten(0, 1)  # [B * groups, C / groups, H, W]
        one, other = parts.chunk(2, dim=1)
        by_mean = self.cweight * one.mean(dim=(2, 3), keepdim=True) + self.cbias
        by_pixel = self.sweight * self.gn(other) + self.sbias
        out = torch.cat([one * self.sigmoid(by_mean), other * self.sigmoid(by_pixel)], dim=1)
        return interleave(out.reshape(x.shape))

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}"
