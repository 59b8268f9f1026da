"""Shuffle attention (arXiv 2102.00240)."""

from math import gcd

import torch
from torch import Tensor, nn


class SA(nn.Module):
    """Gate one half of each group of channels of x (B, C, H, W) by its means, the other pixel by pixel after a group
    normalisation, and shuffle the halves' channels (arXiv 2102.00240).

    The groups share their parameters. Where `groups`, released as 64, does not divide C / 2: as many as divide both.
    ValueError for an odd number of channels.
    """

    def __init__(self, channels: int, groups: int = 64):
        super().__init__()
        if channels % 2:
            raise ValueError(f"channels must be even, got {channels}")
        self.groups = gcd(groups, channels // 2)
        half = channels // (2 * self.groups)
        self.channel_weight, self.pixel_weight = (nn.Parameter(torch.zeros(half, 1, 1)) for _ in range(2))
        self.channel_bias, self.pixel_bias = (nn.Parameter(torch.ones(half, 1, 1)) for _ in range(2))
        self.norm = nn.GroupNorm(half, half)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(1, (self.groups, -1)).flatten(0, 1)  # [B * groups, C / groups, H, W]
        one, other = parts.chunk(2, dim=1)
        one_gate = self.channel_weight * one.mean(dim=(2, 3), keepdim=True) + self.channel_bias
        other_gate = self.pixel_weight * self.norm(other) + self.pixel_bias
        out = torch.cat((one * one_gate.sigmoid(), other * other_gate.sigmoid()), dim=1).reshape(x.shape)
        return out.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
