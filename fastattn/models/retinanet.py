"""torchvision's RetinaNet over timm's vision transformers, the setting of the paper of ACP and CAT (arXiv 2412.18778).

What that paper leaves open and was decided: the levels have the strides 8 to 128, as over a ResNet; a Swin's last three
stages get a feature pyramid network, a ViT's one map gets ViTDet's simple pyramid (arXiv 2203.16527).
"""

import re
from collections.abc import Mapping
from math import log2
from typing import Any

from torch import Tensor, nn

from .libraries import library

PREFIX = "retinanet_"
CHANNELS = 256  # of every level
FINEST = 8  # the stride of the finest level, of which a backbone's maps give three

# What makes timm's models extract the maps for the pyramid, and take images of any size.
EXTRACTORS: dict[str, dict[str, Any]] = {
    r"(vit|deit)_.*": {"out_indices": (-1,), "dynamic_img_size": True},
    r"swin_.*": {"out_indices": (1, 2, 3), "strict_img_size": False, "always_partition": True},
}


class Maps(nn.Module):
    """The maps (B, C_i, H_i, W_i) of a timm feature extractor by their numbers, each normalised over its channels."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.norms = nn.ModuleList(map(library("timm.layers").LayerNorm2d, model.feature_info.channels()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.model(images)
        return {str(i): norm(x) for i, (norm, x) in enumerate(zip(self.norms, maps, strict=True))}


class SimplePyramid(nn.Module):
    """ViTDet's pyramid of one map (B, C, H, W), finest first: `doublings` says for each level how often it is enlarged,
    twofold by transposed convolutions, or where negative reduced by pooling; `extra_blocks` adds coarser levels."""

    def __init__(self, channels: int, doublings: list[int], extra_blocks: nn.Module):
        super().__init__()
        self.levels = nn.ModuleList(simple_level(channels, times) for times in doublings)
        self.extra_blocks = extra_blocks

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (x,) = maps.values()
        levels = [level(x) for level in self.levels]
        levels, names = self.extra_blocks(levels, [x], [str(i) for i in range(len(levels))])
        return dict(zip(names, levels, strict=True))


def simple_level(channels: int, doublings: int) -> nn.Sequential:
    """One level of the simple pyramid, which halves the channels whenever it doubles the sides."""
    norm = library("timm.layers").LayerNorm2d
    layers: list[nn.Module] = [nn.MaxPool2d(2**-doublings)] if doublings < 0 else []
    for i in range(doublings):
        if i:
            layers += [norm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    layers += [nn.Conv2d(channels, CHANNELS, 1, bias=False), norm(CHANNELS)]
    return nn.Sequential(*layers, nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), norm(CHANNELS))


class TransformerBackbone(nn.Module):
    """A timm feature extractor and a pyramid of five levels, in the parts that torchvision's backbones have."""

    def __init__(self, model: Any):
        super().__init__()
        ops = library("torchvision.ops.feature_pyramid_network")
        widths, strides = model.feature_info.channels(), model.feature_info.reduction()
        extra_blocks = ops.LastLevelP6P7(CHANNELS, CHANNELS)
        self.body = Maps(model)
        if len(widths) == 1:
            finest = round(log2(strides[0] / FINEST))
            self.fpn: nn.Module = SimplePyramid(widths[0], [finest, finest - 1, finest - 2], extra_blocks)
            self.stride = strides[0] * 2 ** (2 - finest)  # of the coarsest level that is not an extra one
        else:
            self.fpn = ops.FeaturePyramidNetwork(widths, CHANNELS, extra_blocks)
            self.stride = strides[-1]
        self.out_channels = CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(images))


def retinanet(
    name: str,
    pretrained: bool = False,
    num_classes: int = 91,
    backbone_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """torchvision's RetinaNet over a timm transformer, whose name stands behind "retinanet_" in this one.

    `backbone_kwargs` go to `timm.create_model`, `kwargs` to RetinaNet, which normalises images as the backbone's
    pretrained weights want it unless they say otherwise.
    """
    detection = library("torchvision.models.detection.retinanet")
    transformer = name.removeprefix(PREFIX)
    options = next(options for family, options in EXTRACTORS.items() if re.fullmatch(family, transformer))
    options = {"features_only": True, "feature_cls": "getter", **options, **(backbone_kwargs or {})}
    model = library("timm").create_model(transformer, pretrained=pretrained, **options)
    backbone = TransformerBackbone(model)
    config = model.pretrained_cfg
    defaults = {"image_mean": config["mean"], "image_std": config["std"], "size_divisible": backbone.stride}
    return detection.RetinaNet(backbone, num_classes, **defaults | kwargs)
