"""Where an attention sits inside a backbone: one function per family of timm models."""

import re
from collections.abc import Callable

from torch import nn

MakeAttention = Callable[[nn.Conv2d], nn.Module]  # the convolution before it -> an attention for its channels
Place = Callable[[nn.Module, MakeAttention], int]  # puts attentions into a model, returns how many


def place_in_resnet(model: nn.Module, make: MakeAttention) -> int:
    """After the ReLU behind a bottleneck's 3x3 convolution, or behind a basic block's first convolution."""
    from timm.models.resnet import BasicBlock, Bottleneck

    places = 0
    for block in list(model.modules()):
        if isinstance(block, Bottleneck | BasicBlock):
            attention = make(block.conv2 if isinstance(block, Bottleneck) else block.conv1)
            # the slot of anti-aliasing, right behind that ReLU and empty in most models
            empty = isinstance(block.aa, nn.Identity)
            block.aa = attention if empty else nn.Sequential(attention, block.aa)
            places += 1
    return places


def place_in_mobilenetv2(model: nn.Module, make: MakeAttention) -> int:
    """On the hidden channels, between the depthwise convolution's activation and the linear 1x1
    convolution."""
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

    places = 0
    for block in list(model.modules()):
        # The first inverted residual expands nothing: timm builds it as a depthwise separable convolution.
        if isinstance(block, InvertedResidual | DepthwiseSeparableConv):
            block.se = make(block.conv_dw)  # the slot of squeeze-and-excitation, empty in MobileNetV2
            places += 1
    return places


# Model name as in timm, without a pretrained tag.
PLACEMENTS: dict[str, Place] = {
    r"resnet\d+[cdst]?": place_in_resnet,
    r"mobilenetv2_\d+d?": place_in_mobilenetv2,
}


def placement(name: str) -> Place | None:
    """The placement for a timm model's name, with or without a pretrained tag; None where none is known."""
    base = name.partition(".")[0]
    return next((place for pattern, place in PLACEMENTS.items() if re.fullmatch(pattern, base)), None)
