"""Efficient Multi-scale Attention (arXiv 2305.13563)."""

from math import gcd

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """Gate the pixels of each group of channels of x (B, C, H, W), all groups alike, by the agreement of two branches:
    one gated by rows and columns, one convolved 3x3 (arXiv 2305.13563, section 3).

    Where `groups`, released as 32, does not divide the channels: as many groups as divide both.
    """

    def __init__(self, channels: int, groups: int = 32):
        super().__init__()
        self.groups = gcd(groups, channels)
        width = channels // self.groups
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        parts = x.unflatten(1, (self.groups, -1)).flatten(0, 1)  # [B * groups, c, H, W]
        strips = torch.cat((parts.mean(dim=3), parts.mean(dim=2)), dim=2)  # [B * groups, c, H + W]
        rows, columns = self.conv1(strips[..., None]).sigmoid().split((height, width), dim=2)
        wide = self.norm(parts * rows * columns.transpose(2, 3))
        near = self.conv3(parts)
        logits = agree(wide, near) + agree(near, wide)  # [B * groups, 1, H, W]
        return (parts * logits.sigmoid()).reshape(x.shape)


def agree(one: Tensor, other: Tensor) -> Tensor:
    """The maps (N, c, H, W) of one branch summed with the softmax of the other's means for weights, (N, 1, H, W)."""
    weights = one.mean(dim=(2, 3)).softmax(dim=1)
    return (weights[:, None] @ other.flatten(2)).unflatten(2, other.shape[2:])
