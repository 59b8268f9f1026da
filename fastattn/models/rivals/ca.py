"""Coordinate attention (arXiv 2103.02907)."""

import torch
from torch import Tensor, nn


class CA(nn.Module):
    """Gate x (B, C, H, W) by rows and columns, whose means share a bottleneck of C / `reduction` channels, at least 8
    (arXiv 2103.02907, eq. 4-9; the released settings)."""

    def __init__(self, channels: int, reduction: int = 32):
        super().__init__()
        hidden = max(8, channels // reduction)
        self.squeeze = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        strips = torch.cat((x.mean(dim=3), x.mean(dim=2)), dim=2)  # [B, C, H + W]
        rows, columns = self.squeeze(strips[..., None]).split((height, width), dim=2)  # [B, hidden, H or W, 1]
        return x * self.rows(rows).sigmoid() * self.columns(columns).sigmoid().transpose(2, 3)
