"""Frequency channel attention, FcaNet (arXiv 2012.11879)."""

from collections.abc import Mapping
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 7  # frequencies in each direction
# The paper's 16 best (row, column) frequencies.
TOP16 = (
    *((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)),
    *((5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)),
)


class FCA(nn.Module):
    """Gate the channels of x (B, C, H, W) by a bottleneck on one component each of their discrete cosine transform, a
    sixteenth of the channels having the same (arXiv 2012.11879, with its 16 best frequencies).

    Maps of another size than side x side are pooled to it; `sides` gives the side by the number of channels, 7 where it
    does not. Frequencies are multiples of side // 7. ValueError for channels that 16 does not divide and for a side
    below 7.
    """

    filters: Tensor

    def __init__(self, channels: int, reduction: int = 16, sides: Mapping[int, int] | None = None):
        super().__init__()
        self.side = (sides or {}).get(channels, GRID)
        if channels % len(TOP16) or channels < reduction:
            raise ValueError(
                f"channels must be divisible by the {len(TOP16)} frequencies and at least reduction, "
                f"got {channels} and {reduction}"
            )
        if self.side < GRID:
            raise ValueError(f"sides must be at least {GRID}, got {self.side}")
        filters = cosines(self.side).repeat_interleave(channels // len(TOP16), dim=0)
        self.register_buffer("filters", filters, persistent=False)  # [C, side, side]
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        fits = x.shape[2:] == self.filters.shape[1:]
        pooled = x if fits else F.adaptive_avg_pool2d(x, self.side)
        components = (pooled * self.filters).sum(dim=(2, 3))  # [B, C]
        gate = self.excite(self.squeeze(components).relu()).sigmoid()
        return x * gate[..., None, None]


def cosines(side: int) -> Tensor:
    """The orthonormal cosine transform's basis maps (16, side, side) of the 16 frequencies."""
    pixels, frequencies = torch.arange(side) + 0.5, torch.arange(GRID) * (side // GRID)
    basis = (pi / side * frequencies[:, None] * pixels).cos() * (2 / side) ** 0.5  # [GRID, side]
    basis[0] = side**-0.5
    rows, columns = ([frequency[axis] for frequency in TOP16] for axis in (0, 1))
    return basis[rows][:, :, None] * basis[columns][:, None, :]
