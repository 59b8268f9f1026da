"""The attentions that the papers compare with, in plain PyTorch: what they are for is to be measured against.

Settings are the released ones. SCSA's paper (arXiv 2407.05128, Table 2) gives a ResNet-50 with each of them its number
of parameters, which tells where in a bottleneck it stood: counts in the notes are those, in millions.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .ca import CA
from .cbam import cbam
from .cpca import CPCA
from .eca import eca
from .ela import ELA
from .ema import EMA
from .fca import FCA
from .mhsa import MHSA
from .sa import SA
from .se import se

MIDDLE, OUTPUT = "middle", "output"


@dataclass(frozen=True)
class Rival:
    """What makes it, for a number of channels: a module on maps (B, C, H, W) that keeps their shape; where it stands in
    a ResNet's bottleneck, in its MIDDLE, where SCSA does, or at its OUTPUT; and what to know about it."""

    make: Callable[..., nn.Module]
    place: str
    note: str


RIVALS = {
    "se": Rival(se, OUTPUT, "reduction 16, no biases"),
    "eca": Rival(eca, OUTPUT, "kernel by the number of channels"),
    "cbam": Rival(cbam, OUTPUT, "reduction 16, a 7x7 convolution with batch normalisation"),
    "fca": Rival(FCA, OUTPUT, "the 16 best frequencies, reduction 16"),
    "cpca": Rival(
        CPCA,
        MIDDLE,
        "reduction 16, as in the code of SCSA's authors (CPCA's own has 4: a ResNet-50 of 27.87 M); a ResNet-50 has "
        "27.395 M, in SCSA's table 27.40",
    ),
    "sa": Rival(SA, OUTPUT, "64 groups, or as many as divide half the channels evenly"),
    "ela": Rival(ELA, MIDDLE, "ELA-B: kernel 7, depthwise, 16 groups of normalisation, shared by rows and columns"),
    "ca": Rival(CA, MIDDLE, "reduction 32, at least 8 hidden channels"),
    "ema": Rival(EMA, MIDDLE, "32 groups, or as many as divide the channels evenly"),
    "mhsa": Rival(
        MHSA,
        MIDDLE,
        "4 heads over all pixels, with an output projection and no positions (BoTNet, arXiv 2101.11605, puts it in "
        "place of the last stage's 3x3 convolutions)",
    ),
}
