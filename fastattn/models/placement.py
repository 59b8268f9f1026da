"""Where attentions stand in timm's backbones and torchvision's detectors: the places of each family of them, and what
stands there."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from .fpn import put_behind_fpn, put_into_bottlenecks
from .levels import PerLevel
from .retinanet import PREFIX
from .rivals import MIDDLE, OUTPUT, RIVALS
from .ssd import place_in_ssd
from .tokens import (
    MakeAttention,
    put_after_swin_blocks,
    put_after_vit_blocks,
    put_before_swin_blocks,
    put_before_vit_blocks,
)

Put = Callable[..., None]  # puts what a maker makes into a model, and into a pyramid from one level to before another


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


def put_into_mobilenetv3_blocks(model: nn.Module, make: MakeAttention) -> None:
    """At the same place, before the squeeze-and-excitation that some of the blocks have."""
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

    for block in list(model.modules()):
        if isinstance(block, InvertedResidual | DepthwiseSeparableConv):
            block.aa = make(block.conv_dw.out_channels)  # the slot of anti-aliasing, empty in MobileNetV3


def put_into_mobilevit_blocks(model: nn.Module, make: MakeAttention) -> None:
    """On the hidden channels of each inverted residual of a MobileViT, behind the depthwise convolution."""
    from timm.models.byobnet import BottleneckBlock

    for block in list(model.modules()):
        if isinstance(block, BottleneckBlock):
            convolution: Any = block.conv2_kxk.conv
            block.attn = make(convolution.out_channels)


def put_into_repvgg_blocks(model: nn.Module, make: MakeAttention) -> None:
    """Between the sum of each block's branches and its activation; the first block is timm's stem."""
    from timm.models.byobnet import RepVggBlock

    for block in list(model.modules()):
        if isinstance(block, RepVggBlock):
            convolution: Any = block.conv_kxk.conv
            block.attn = make(convolution.out_channels)


def put_after_last_stage(model: nn.Module, make: MakeAttention) -> None:
    """Once, on the maps of the last stage that timm lists for the model: at that stage's end, named `attention`; not in
    a feature extractor that does not give this stage."""
    stages: Any = model.feature_info
    stage = stages[-1]
    given = stages.module_name() if hasattr(stages, "module_name") else [stage["module"]]
    # extractors keep a model as a child, or its stages in one list
    parts = {re.sub(r"^(model|body)\.", "", name).replace(".", "_"): part for name, part in model.named_modules()}
    last = parts.get(stage["module"].replace(".", "_"))
    if last is not None and stage["module"] in given:
        last.add_module("attention", make(stage["num_chs"]))


def one_on_each(put: Put, model: nn.Module, make: MakeAttention, start: int, stop: int) -> None:
    """An attention on the map of each of a pyramid's levels."""
    put(model, lambda widths: PerLevel(map(make, widths)), start, stop)


@dataclass(frozen=True)
class Place:
    """A place in a family of models, and the attentions that stand there.

    `models` matches their names, without a pretrained tag; `where` says in words where it is; `defaults` are, by
    attention, constructor arguments that it gets there unless the caller gives others; `levels` is how many a pyramid
    has, on some of which the attention stands, 0 for a place that is not on a pyramid.
    """

    models: str
    attentions: tuple[str, ...]
    put: Put
    where: str
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    levels: int = 0


BASIC, BOTTLENECKS = r"resnet(10|18|34)[dt]?", r"resnet(?!(10|18|34)[dt]?$)\d+[cdst]?|resnext\d+d?_\d+x\d+d"
MOBILENETV2, MOBILENETV3 = r"mobilenetv2_\d+d?", r"mobilenetv3_(small|large)_\d+d?"
MOBILEVIT = r"mobilevit(_x?xs|_s|v2_\d+)"
REPVGG = r"repvgg_(a|b)\d(g4)?"
VITS = r"(vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+"
SWINS = r"swin_(tiny|small|base|large)_patch4_window\d+_\d+"
VIT, SWIN = (rf"({PREFIX})?{family}" for family in (VITS, SWINS))  # alone or in a RetinaNet
SSD = r"ssd300_vgg16"
RESNET_FPN = r"(fasterrcnn|maskrcnn|retinanet|fcos)_resnet50_fpn"
FPN = rf"{RESNET_FPN}|{PREFIX}({VITS}|{SWINS})"

IN_BLOCKS = "scsa", "smsa", "pcsa"
IN_BOTTLENECKS, AT_OUTPUTS = (
    tuple(name for name, rival in RIVALS.items() if rival.place == place) for place in (MIDDLE, OUTPUT)
)
GUESS = "(a guess: the parameters that SCSA's paper prints fix the width alone)"
AFTER_LAST_STAGE = "once, after the last stage"
ON_EACH_LEVEL = "one on the map of each level, before the head"


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
        f"in every block, between the sum of the branches and the activation {GUESS}",
    ),
    *(
        Place(family, ("lga",), put_after_last_stage, AFTER_LAST_STAGE, {"lga": {"num_heads": 8}})
        for family in (BOTTLENECKS, BASIC)
    ),
    Place(MOBILENETV3, ("lga", *RIVALS), put_after_last_stage, AFTER_LAST_STAGE, {"lga": {"num_heads": 12}}),
    Place(
        MOBILENETV3,
        IN_BLOCKS,
        put_into_mobilenetv3_blocks,
        "in every inverted residual, on the hidden channels behind the depthwise convolution, before the block's own "
        "squeeze-and-excitation where it has one",
    ),
    Place(
        MOBILEVIT,
        (*IN_BLOCKS, *RIVALS),
        put_into_mobilevit_blocks,
        "in every inverted residual, on the hidden channels between the depthwise and the last convolution",
    ),
    Place(  # no paper's choice: as in a Swin
        VIT,
        (*IN_BLOCKS, *RIVALS),
        put_after_vit_blocks,
        "on the output of every block, the grid's tokens as a map, which those of class and registers pass by",
    ),
    Place(SWIN, (*IN_BLOCKS, *RIVALS), put_after_swin_blocks, f"on the output map of every block {GUESS}"),
    Place(VIT, ("interaction",), put_before_vit_blocks, "before every block"),
    Place(SWIN, ("interaction",), put_before_swin_blocks, "before every block"),
    Place(
        RESNET_FPN,
        (*IN_BLOCKS, *IN_BOTTLENECKS),
        put_into_bottlenecks,
        "in every bottleneck of the backbone, after the ReLU behind the 3x3 convolution",
    ),
    Place(
        RESNET_FPN,
        AT_OUTPUTS,
        partial(put_into_bottlenecks, at_output=True),
        "at the output of every bottleneck of the backbone, before the sum with the shortcut",
        fca_sides(256),
    ),
    Place(SSD, tuple(RIVALS), partial(one_on_each, place_in_ssd), ON_EACH_LEVEL, levels=6),
    Place(SSD, ("cfsam",), place_in_ssd, "once, between the backbone's pyramid and the head", levels=6),
    Place(FPN, (*IN_BLOCKS, *RIVALS), partial(one_on_each, put_behind_fpn), ON_EACH_LEVEL, levels=5),
    Place(FPN, ("cfsam",), put_behind_fpn, "once, between the backbone's pyramid and the heads", levels=5),
)


def places(model: str) -> list[Place]:
    """The places in a model, by its name with or without a pretrained tag; a module of the caller's own stands at the
    first."""
    name = model.partition(".")[0]
    return [place for place in PLACES if re.fullmatch(place.models, name)]
