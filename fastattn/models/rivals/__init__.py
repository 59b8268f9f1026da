"""The attentions that the papers compare with: those of `fastattn.zoo` and multi-head self-attention, as released.

SCSA's paper (arXiv 2407.05128, Table 2) gives a ResNet-50 with each of them its number of parameters, which tells where
in a bottleneck it stood: counts in the notes are those, in millions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ... import zoo
from .mhsa import MHSA

MIDDLE, OUTPUT = "middle", "output"
GRID = 7  # the least side of FCA's filters


@dataclass(frozen=True)
class Rival:
    """What makes it, for a number of channels: a module on maps (B, C, H, W) that keeps their shape; where it stands in
    a ResNet's bottleneck, in its MIDDLE, where SCSA does, or at its OUTPUT; and what to know about it."""

    make: Callable[..., nn.Module]
    place: str
    note: str


def se(channels: int, **options: Any) -> zoo.SEModule:
    """SE whose C / 16 hidden channels are not rounded to a multiple of 8, without biases: a ResNet-50 has the 28.07 M
    parameters of SCSA's table then, with biases 28.09."""
    return zoo.SEModule(channels, **{"rd_divisor": 1, "bias": False} | options)


def fca(channels: int, reduction: int = 16, sides: Mapping[int, int] | None = None) -> zoo.FcaLayer:
    """FCA with filters side x side; `sides` gives the side by the number of channels, 7 where it does not."""
    side = (sides or {}).get(channels, GRID)
    return zoo.FcaLayer(channels, side, side, reduction)


def cpca(channels: int, reduction: int = 16) -> zoo.CPCA:
    """CPCA with the reduction of SCSA's authors."""
    return zoo.CPCA(channels, channelAttention_reduce=reduction)


RIVALS = {
    "se": Rival(se, OUTPUT, "reduction 16, no biases"),
    "eca": Rival(zoo.ECA, OUTPUT, "kernel by the number of channels"),
    "cbam": Rival(zoo.CBAM, OUTPUT, "reduction 16, a 7x7 convolution with batch normalisation"),
    "fca": Rival(fca, OUTPUT, "the 16 best frequencies, reduction 16"),
    "cpca": Rival(
        cpca,
        MIDDLE,
        "reduction 16, as in the code of SCSA's authors (CPCA's own has 4: a ResNet-50 of 27.87 M); a ResNet-50 has "
        "27.395 M, in SCSA's table 27.40",
    ),
    "sa": Rival(zoo.ShuffleAttention, OUTPUT, "64 groups, or as many as divide half the channels evenly"),
    "ela": Rival(zoo.ELA, MIDDLE, "ELA-B: kernel 7, depthwise, 16 groups of normalisation, shared by rows and columns"),
    "ca": Rival(zoo.CoordAtt, MIDDLE, "reduction 32, at least 8 hidden channels"),
    "ema": Rival(zoo.EMA, MIDDLE, "32 groups, or as many as divide the channels evenly"),
    "mhsa": Rival(
        MHSA,
        MIDDLE,
        "4 heads over all pixels, with an output projection and no positions (BoTNet, arXiv 2101.11605, puts it in "
        "place of the last stage's 3x3 convolutions)",
    ),
}
