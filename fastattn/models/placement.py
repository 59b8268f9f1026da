"""Where attentions stand in timm's models: the places of each family of backbones, and what stands there."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .rivals import MIDDLE, OUTPUT, RIVALS
from .tokens import (
    MakeAttention,
    put_after_swin_blocks,
    put_after_vit_blocks,
    put_before_swin_blocks,
    put_before_vit_blocks,
)

Put = Callable[[nn.Module, MakeAttention], None]  # puts attentions into a model


def put_into_resnet_blocks(model: nn.Module, make: MakeAttention) -> None:
    """After the ReLU behind each bottleneck's 3x3 convolution, or behind each basic block's first convolution."""
    from timm.models.resnet import BasicBlock, Bottleneck

    for block in list(model.modules()):
        if isinstance(block, Bottleneck | BasicBlock):
            convolution = block.conv2 if isinstance(block, Bottleneck) else block.conv1
            attention = make(convolution.out_channels)
            # the slot of anti-aliasing, right behind that ReLU and empty in most models
            slot: Any = block.aa
            block.aa = attention if isinstance(slot, nn.Identity) else nn.Sequential(attention, slot)


def put_at_bottleneck_outputs(model: nn.Module, make: MakeAttention) -> None:
    """On the output of each bottleneck, before the shortcut is added."""
    from timm.models.resnet import Bottleneck

    for block in list(model.modules()):
        if isinstance(block, Bottleneck):
            block.se = make(block.conv3.out_channels)  # the slot of squeeze-and-excitation, empty in a ResNet


def put_into_mobilenetv2_blocks(model: nn.Module, make: MakeAttention) -> None:
    """On the hidden channels of each block, between the depthwise convolution's activation and the linear 1x1
    convolution."""
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

    for block in list(model.modules()):
        # The first inverted residual expands nothing: timm builds it as a depthwise separable convolution.
        if isinstance(block, InvertedResidual | DepthwiseSeparableConv):
            block.se = make(block.conv_dw.out_channels)  # the slot of squeeze-and-excitation, empty in MobileNetV2


def put_into_repvgg_blocks(model: nn.Module, make: MakeAttention) -> None:
    """Between the sum of each block's branches and its activation; the first block is timm's stem."""
    from timm.models.byobnet import RepVggBlock

    for block in list(model.modules()):
        if isinstance(block, RepVggBlock):
            convolution: Any = block.conv_kxk.conv
            block.attn = make(convolution.out_channels)


def put_after_last_stage(model: nn.Module, make: MakeAttention) -> None:
    """Once, on the maps of the last stage that timm lists for the model: at that stage's end, named `attention`."""
    stages: Any = model.feature_info
    stage = stages[-1]
    model.get_submodule(stage["module"]).add_module("attention", make(stage["num_chs"]))


@dataclass(frozen=True)
class Place:
    """A place in a family of backbones, and the attentions that stand there.

    `backbones` matches timm's names, without a pretrained tag; `where` says in words where it is; `defaults` are, by
    attention, constructor arguments that it gets there unless the caller gives others.
    """

    backbones: str
    attentions: tuple[str, ...]
    put: Put
    where: str
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


BASIC, BOTTLENECKS = r"resnet(10|18|34)[dt]?", r"resnet(?!(10|18|34)[dt]?$)\d+[cdst]?"
MOBILENETV2, MOBILENETV3 = r"mobilenetv2_\d+d?", r"mobilenetv3_(small|large)_\d+d?"
REPVGG = r"repvgg_(a|b)\d(g4)?"
VIT = r"(vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+"
SWIN = r"swin_(tiny|small|base|large)_patch4_window\d+_\d+"

IN_BLOCKS = "scsa", "smsa", "pcsa"
IN_BOTTLENECKS, AT_OUTPUTS = (
    tuple(name for name, rival in RIVALS.items() if rival.place == place) for place in (MIDDLE, OUTPUT)
)
AFTER_LAST_STAGE = "once, after the last stage"


def fca_sides(first: int) -> dict[str, Any]:
    """The sides of FCA's filters in a ResNet whose first of four stages has so many channels: its maps' own."""
    return {"fca": {"sides": {first << stage: 56 >> stage for stage in range(4)}}}


PLACES = (
    Place(
        BOTTLENECKS,
        (*IN_BLOCKS, *IN_BOTTLENECKS),
        put_into_resnet_blocks,
        "in every bottleneck, after the ReLU behind the 3x3 convolution",
    ),
    Place(
        BOTTLENECKS,
        AT_OUTPUTS,
        put_at_bottleneck_outputs,
        "at the output of every bottleneck, before the sum with the shortcut",
        fca_sides(256),
    ),
    Place(
        BASIC,
        (*IN_BLOCKS, *RIVALS),
        put_into_resnet_blocks,
        "in every block, after the ReLU behind the first convolution",
        fca_sides(64),
    ),
    Place(
        MOBILENETV2,
        (*IN_BLOCKS, *RIVALS),
        put_into_mobilenetv2_blocks,
        "in every inverted residual, on the hidden channels between the depthwise and the last convolution",
    ),
    Place(
        REPVGG,
        (*IN_BLOCKS, *RIVALS),
        put_into_repvgg_blocks,
        "in every block, between the sum of the branches and the activation",
    ),
    *(
        Place(family, ("lga",), put_after_last_stage, AFTER_LAST_STAGE, {"lga": {"num_heads": 8}})
        for family in (BOTTLENECKS, BASIC)
    ),
    Place(MOBILENETV3, ("lga", *RIVALS), put_after_last_stage, AFTER_LAST_STAGE, {"lga": {"num_heads": 12}}),
    Place(  # no paper's choice: as in a Swin
        VIT,
        (*IN_BLOCKS, *RIVALS),
        put_after_vit_blocks,
        "on the output of every block, the grid's tokens as a map, which those of class and registers pass by",
    ),
    Place(SWIN, (*IN_BLOCKS, *RIVALS), put_after_swin_blocks, "on the output map of every block"),
    Place(VIT, ("interaction",), put_before_vit_blocks, "before every block"),
    Place(SWIN, ("interaction",), put_before_swin_blocks, "before every block"),
)


def places(backbone: str) -> list[Place]:
    """The places in a timm model, by its name with or without a pretrained tag; a module of the caller's own stands at
    the first."""
    name = backbone.partition(".")[0]
    return [place for place in PLACES if re.fullmatch(place.backbones, name)]
