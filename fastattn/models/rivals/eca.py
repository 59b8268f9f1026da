"""Efficient Channel Attention (arXiv 1910.03151), timm's."""

from typing import Any

from torch import nn

from ..libraries import library


def eca(channels: int, **options: Any) -> nn.Module:
    """Gate the channels of x (B, C, H, W) by a convolution along their means, whose kernel grows with the logarithm of
    their number; ImportError without timm. `options` are those of timm's module."""
    return library("timm.layers").create_attn("eca", channels, **options)
