"""Where an attention sits inside torchvision's detectors over a feature pyramid: in a ResNet's bottlenecks, or between
the pyramid and the heads."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .levels import MakeNeck, OnLevels
from .libraries import library
from .tokens import MakeAttention


class AttentiveBottleneck(nn.Module):
    """The layers of torchvision's bottleneck, by their names, with an attention in its middle, behind the 3x3
    convolution and its ReLU, or at its output, before the sum with the shortcut."""

    def __init__(self, block: Any, make: MakeAttention, at_output: bool):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.conv3, self.bn3, self.relu = block.conv3, block.bn3, block.relu
        self.downsample = block.downsample  # None where x itself is the shortcut
        self.attention = make((block.conv3 if at_output else block.conv2).out_channels)
        self.at_output = at_output

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        if not self.at_output:
            out = self.attention(out)
        out = self.bn3(self.conv3(out))
        if self.at_output:
            out = self.attention(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def put_into_bottlenecks(model: nn.Module, make: MakeAttention, at_output: bool = False) -> None:
    """In the middle of each of torchvision's bottlenecks, or at its output."""
    bottleneck = library("torchvision.models.resnet").Bottleneck
    for layer in list(model.modules()):
        for name, block in list(layer.named_children()):
            if isinstance(block, bottleneck):
                layer.add_module(name, AttentiveBottleneck(block, make, at_output))


def put_behind_fpn(model: Any, make: MakeNeck, start: int, stop: int) -> None:
    """At the end of the backbone, whose maps all have as many channels: as a child of it, named `neck`."""
    backbone = model.backbone
    backbone.neck = OnLevels(make([backbone.out_channels] * (stop - start)), start, stop)
    backbone.register_forward_hook(through_neck)


def through_neck(backbone: Any, args: tuple, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output of a backbone, maps by the names of their levels, after its neck."""
    return dict(zip(maps, backbone.neck(list(maps.values())), strict=True))
