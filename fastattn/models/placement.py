"""Where attentions stand in timm's models: the places of each family of backbones, and what stands there."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .tokens import put_before_swin_blocks, put_before_vit_blocks

MakeAttention = Callable[..., nn.Module]  # channels -> an attention for maps, or tokens, of so many
Put = Callable[[nn.Module, MakeAttention], None]  # puts attentions into a model


def put_into_resnet_blocks(model: nn.Module, make: MakeAttention) -> None:
    """After the ReLU behind each bottleneck's 3x3 convolution, or behind each basic block's first convolution."""
    from timm.models.resnet import BasicBlock, Bottleneck

    for block in list(model.modules()):
        if isinstance(block, Bottleneck | BasicBlock):
            convolution = block.conv2 if isinstance(block, Bottleneck) else block.conv1
            attention = make(convolution.out_channels)
            # the slot of anti-aliasing, right behind that ReLU and empty in most models
            empty = isinstance(block.aa, nn.Identity)
            block.aa = attention if empty else nn.Sequential(attention, block.aa)


def put_into_mobilenetv2_blocks(model: nn.Module, make: MakeAttention) -> None:
    """On the hidden channels of each block, between the depthwise convolution's activation and the linear 1x1
    convolution."""
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

    for block in list(model.modules()):
        # The first inverted residual expands nothing: timm builds it as a depthwise separable convolution.
        if isinstance(block, InvertedResidual | DepthwiseSeparableConv):
            block.se = make(block.conv_dw.out_channels)  # the slot of squeeze-and-excitation, empty in MobileNetV2


def put_after_last_stage(model: nn.Module, make: MakeAttention) -> None:
    """Once, on the maps of the last stage that timm lists for the model: at that stage's end, named `attention`."""
    stages: Any = model.feature_info
    stage = stages[-1]
    model.get_submodule(stage["module"]).add_module("attention", make(stage["num_chs"]))


@dataclass(frozen=True)
class Place:
    """A place in a family of backbones, and the attentions that stand there.

    `backbones` matches timm's names, without a pretrained tag; `defaults` are constructor arguments that the attention
    gets there unless the caller gives others.
    """

    backbones: str
    attentions: tuple[str, ...]
    put: Put
    defaults: Mapping[str, Any] = field(default_factory=dict)


RESNET, MOBILENETV2, MOBILENETV3 = r"resnet\d+[cdst]?", r"mobilenetv2_\d+d?", r"mobilenetv3_(small|large)_\d+d?"
VIT = r"(vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+"
SWIN = r"swin_(tiny|small|base|large)_patch4_window\d+_\d+"
IN_BLOCKS = "scsa", "smsa", "pcsa"

PLACES = (
    Place(RESNET, IN_BLOCKS, put_into_resnet_blocks),
    Place(MOBILENETV2, IN_BLOCKS, put_into_mobilenetv2_blocks),
    Place(RESNET, ("lga",), put_after_last_stage, {"num_heads": 8}),
    Place(MOBILENETV3, ("lga",), put_after_last_stage, {"num_heads": 12}),
    Place(VIT, ("interaction",), put_before_vit_blocks),
    Place(SWIN, ("interaction",), put_before_swin_blocks),
)


def places(backbone: str) -> list[Place]:
    """The places in a timm model, by its name with or without a pretrained tag; a module of the caller's own stands at
    the first."""
    name = backbone.partition(".")[0]
    return [place for place in PLACES if re.fullmatch(place.backbones, name)]
