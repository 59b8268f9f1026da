"""Gates of the rows and the columns of each channel by their means: coordinate attention and ELA."""

from math import gcd

import torch
from torch import Tensor, nn

from ..core.module import affine
from .channel_gates import with_biases
from .description import Description, Step
from .module import Gate


class CoordAtt(Gate):
    """Coordinate attention (arXiv 2103.02907, eq. 4-9): x (B, inp, H, W) is gated by rows and by columns, whose means
    share a bottleneck of inp / reduction channels, at least 8.

    Constructor and state dict are the released ones. ValueError where `oup` is another number than `inp`, as the gates
    of oup channels are for x.
    """

    def __init__(self, inp: int, oup: int | None = None, reduction: int = 32):
        super().__init__()
        if oup not in (None, inp):
            raise ValueError(f"oup must be inp, got {inp} and {oup}")
        hidden = max(8, inp // reduction)
        self.channels = inp
        self.conv1 = nn.Conv2d(inp, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, inp, 1)
        self.conv_w = nn.Conv2d(hidden, inp, 1)
        norm = Step("batch_norm", number=self.bn1.eps)
        layers = Step("linear", hidden), norm, Step("hard_swish"), Step("linear_by_axis", inp), Step("sigmoid")
        self.description = Description("axes", layers, "axes")
        self._note_children()

    def parameters_in_order(self) -> list[Tensor]:
        return with_biases(self.conv1, self.bn1, self.conv_h, self.conv_w)

    behind_norm = 4

    def norm(self) -> nn.Module:
        return self.bn1

    def normalised(self, x: Tensor) -> int:
        return x.shape[0] * (x.shape[2] + x.shape[3])

    def _through_children(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        strips = torch.cat([x.mean(dim=3), x.mean(dim=2)], dim=2)  # [B, C, H + W]
        hidden = self.act(self.bn1(self.conv1(strips[..., None])))
        rows, columns = hidden.split([height, width], dim=2)  # [B, hidden, H or W, 1]
        return x * self.conv_w(columns).mT.sigmoid() * self.conv_h(rows).sigmoid()


class ELA(Gate):
    """Efficient local attention (arXiv 2403.01123): x (B, channel, H, W) is gated by rows and by columns, by a
    depthwise convolution along their means and a group normalisation, both shared by the two directions.

    The defaults are the paper's ELA-B, its code's layers; where `groups` does not divide the channels, as many groups
    as divide both. ValueError for an even kernel.
    """

    def __init__(self, channel: int, kernel_size: int = 7, groups: int = 16):
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.channels, self.kernel_size = channel, kernel_size
        self.conv = nn.Conv1d(channel, channel, kernel_size, padding=kernel_size // 2, groups=channel, bias=False)
        self.gn = nn.GroupNorm(gcd(groups, channel), channel)
        norm = Step("group_norm", self.gn.num_groups, self.gn.eps)
        self.description = Description("axes", (Step("along_axes", kernel_size), norm, Step("sigmoid")), "axes")
        self._note_children()

    def parameters_in_order(self) -> list[Tensor]:
        return [affine(self.conv)[0], *with_biases(self.gn)]

    def _through_children(self, x: Tensor) -> Tensor:
        rows = self.gn(self.conv(x.mean(dim=3))).sigmoid()  # [B, C, H]
        columns = self.gn(self.conv(x.mean(dim=2))).sigmoid()  # [B, C, W]
        return x * rows[..., None] * columns[..., None, :]
