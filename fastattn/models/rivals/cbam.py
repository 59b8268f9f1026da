"""Convolutional Block Attention Module (arXiv 1807.06521), timm's."""

from typing import Any

from torch import nn

from ..libraries import library


def cbam(channels: int, **options: Any) -> nn.Module:
    """Gate the channels of x (B, C, H, W) by a bottleneck on their means and maxima, then the pixels by a convolution
    of theirs; ImportError without timm. `options` are those of timm's module."""
    return library("timm.layers").create_attn("cbam", channels, **options)
