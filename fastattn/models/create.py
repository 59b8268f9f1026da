"""Backbones by their timm names and detectors by their torchvision names, with an attention in them."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from ..modules import CFSAM, PCSA, SCSA, SMSA, EnhancedInteraction, LocalGlobalAttention
from .levels import span
from .placement import places
from .ssd import place_in_ssd

# Made for a map's number of channels; for that of tokens, and how many stand before the grid's; and for those of all
# levels of a pyramid, whose maps it takes as a list.
ON_MAPS: dict[str, Callable[..., nn.Module]] = {"scsa": SCSA, "smsa": SMSA, "pcsa": PCSA, "lga": LocalGlobalAttention}
ON_TOKENS: dict[str, Callable[..., nn.Module]] = {"interaction": EnhancedInteraction}
ON_PYRAMIDS: dict[str, Callable[..., nn.Module]] = {"cfsam": CFSAM}
KNOWN = ON_MAPS | ON_TOKENS | ON_PYRAMIDS
DETECTORS = {"ssd300_vgg16": 6}  # levels of their pyramids


def attentions(backbone: str | None = None) -> list[str]:
    """The names of the attentions that `create` knows, or of those that fit one backbone."""
    if backbone is None:
        return sorted(KNOWN)
    if backbone in DETECTORS:
        return sorted(ON_PYRAMIDS)
    return sorted(name for place in places(backbone) for name in place.attentions)


def backbones() -> list[str]:
    """The names that `create` knows: timm's of the backbones, torchvision's of the detectors; ImportError without
    timm."""
    return [*filter(places, library("timm").list_models()), *DETECTORS]


def create(
    name: str,
    attention: str | Callable[..., nn.Module] | None = None,
    *,
    attention_kwargs: Mapping[str, Any] | None = None,
    levels: str | slice = "all",
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Create a model with an attention where its paper puts it: a timm backbone with SCSA or one of its parts in every
    block (arXiv 2407.05128, section 4), with LGA once, after the last stage (arXiv 2411.09604), or, a ViT or a Swin,
    with the interaction ACP + CAT before the self-attention of every block (arXiv 2412.18778); or torchvision's SSD300
    with CFSAM between its pyramid and its head (arXiv 2510.14726).

    `attention` is a name, None for the plain model, or a callable: in a backbone it makes a module for a number of
    channels, and stands in every block where SCSA does, else after the last stage; in a transformer it is given
    `num_prefix_tokens` too, the model's own, and what it makes is called as EnhancedInteraction is; in a detector it
    makes one for the list of the levels' channels, which maps a list of maps to one of the same shapes.
    `attention_kwargs` go to its constructor (LGA has 8 heads in a ResNet and 12 in a MobileNetV3 unless they say
    otherwise), `kwargs` to `timm.create_model` or torchvision's builder. With `pretrained` the backbone's weights are
    loaded and the attention's are fresh; torchvision's `weights="DEFAULT"` loads a detector as a whole, of 91 classes.
    A detector's `levels` are "all" six, "shallow", the first three, "deep", the last three, or a slice of them.

    SCSA needs feature maps of at least its window: 7 x 7, which inputs of 224 x 224 give. Raises ValueError for an
    unknown backbone, an attention that does not fit it and levels that are not there, ImportError without timm or
    torchvision.
    """
    detects, known = name in DETECTORS, places(name)
    if not detects and (not known or name.partition(".")[0] not in backbones()):
        raise ValueError(f"unknown backbone {name!r}: fastattn.models knows {', '.join(backbones())}")
    if detects:
        span(levels, DETECTORS[name])
    elif levels != "all":
        raise ValueError(f"levels are those of {', '.join(DETECTORS)}, {name!r} has none")
    defaults: Mapping[str, Any] = {}
    if isinstance(attention, str):
        if attention not in attentions(name):
            raise ValueError(f"no attention {attention!r} for {name!r}, which takes {', '.join(attentions(name))}")
        if not detects:
            known = [place for place in known if attention in place.attentions]
            defaults = known[0].defaults
        attention = KNOWN[attention]
    make = None if attention is None else partial(attention, **{**defaults, **(attention_kwargs or {})})
    if detects:
        weights = {} if pretrained else {"weights_backbone": None}  # torchvision loads the backbone's by default
        model = getattr(library("torchvision.models.detection"), name)(**weights | kwargs)
        if make:
            place_in_ssd(model, make, levels)
    else:
        model = library("timm").create_model(name, pretrained=pretrained, **kwargs)
        if make:
            like = next(model.parameters())
            known[0].put(model, lambda channels, **own: make(channels, **own).to(like))
    return model


def library(name: str) -> Any:
    """A library's module, imported when it is first needed."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"fastattn.models needs {package}: pip install 'fastattn[models]'") from error
