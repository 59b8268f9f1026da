"""Squeeze-and-Excitation (arXiv 1709.01507), timm's."""

from typing import Any

from torch import nn

from ..libraries import library


def se(channels: int, **options: Any) -> nn.Module:
    """Gate the channels of x (B, C, H, W) by a bottleneck on their means; ImportError without timm.

    `options` are those of timm's module. By default the C / 16 hidden channels are not rounded to a multiple of 8, and
    there are no biases: with both, a ResNet-50 has the 28.07 M parameters of SCSA's table, with biases 28.09.
    """
    return library("timm.layers").create_attn("se", channels, **{"rd_divisor": 1, "bias": False} | options)
