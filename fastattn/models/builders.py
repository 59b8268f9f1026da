"""What builds a plain model by its name: timm, torchvision, or both together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from .libraries import library
from .placement import places
from .retinanet import PREFIX, retinanet

DETECTORS = (
    "ssd300_vgg16",
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
)


def timm_names(prefix: str = "") -> list[str]:
    """timm's names of models for which there are places, behind a prefix that makes others of them."""
    return [name for name in (f"{prefix}{timms}" for timms in library("timm").list_models()) if places(name)]


def timm_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model of timm."""
    return library("timm").create_model(name, pretrained=pretrained, **kwargs)


def torchvision_detector(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A detector of torchvision, which loads the backbone's weights by default."""
    weights = {} if pretrained else {"weights_backbone": None}
    return getattr(library("torchvision.models.detection"), name)(**weights | kwargs)


class Source(NamedTuple):
    """Models by their names, and what builds one of them: (name, pretrained, **kwargs) -> model."""

    names: Callable[[], Sequence[str]]
    build: Callable[..., nn.Module]


SOURCES = (
    Source(lambda: DETECTORS, torchvision_detector),
    Source(timm_names, timm_model),
    Source(lambda: timm_names(PREFIX), retinanet),
)


def builder(name: str) -> Callable[..., nn.Module]:
    """What builds a model, by its name with or without a pretrained tag; ValueError for an unknown one."""
    for source in SOURCES:
        if name.partition(".")[0] in source.names():
            return source.build
    known = ", ".join(name for source in SOURCES for name in source.names())
    raise ValueError(f"unknown backbone {name!r}: fastattn.models knows {known}")
