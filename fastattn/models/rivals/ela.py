"""Efficient Local Attention (arXiv 2403.01123)."""

from math import gcd

from torch import Tensor, nn


class ELA(nn.Module):
    """Gate x (B, C, H, W) by rows and columns: a depthwise convolution along their means and a group normalisation,
    both shared by the two directions (arXiv 2403.01123).

    The defaults are the paper's ELA-B; where `groups` does not divide the channels, as many groups as divide both.
    """

    def __init__(self, channels: int, kernel_size: int = 7, groups: int = 16):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)
        self.norm = nn.GroupNorm(gcd(groups, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.conv(x.mean(dim=3))).sigmoid()  # [B, C, H]
        columns = self.norm(self.conv(x.mean(dim=2))).sigmoid()  # [B, C, W]
        return x * rows[..., None] * columns[..., None, :]
