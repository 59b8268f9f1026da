"""Backbones by their timm names and detectors by their torchvision names, with an attention in them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..cfsam.module import CFSAM
from ..core.backends import use_backend
from ..core.module import FastModule
from ..interaction.module import EnhancedInteraction
from ..lga.module import LocalGlobalAttention
from ..scsa.module import PCSA, SCSA, SMSA
from .levels import PerLevel, span
from .libraries import library
from .placement import Place, places
from .rivals import RIVALS
from .ssd import place_in_ssd

Attention = str | Callable[..., nn.Module]  # a name, or what makes one for a map's number of channels

# Made for a map's number of channels; for that of tokens, and how many stand before the grid's; and for those of all
# levels of a pyramid, whose maps it takes as a list.
ON_MAPS: dict[str, Callable[..., nn.Module]] = {"scsa": SCSA, "smsa": SMSA, "pcsa": PCSA, "lga": LocalGlobalAttention}
ON_TOKENS: dict[str, Callable[..., nn.Module]] = {"interaction": EnhancedInteraction}
ON_PYRAMIDS: dict[str, Callable[..., nn.Module]] = {"cfsam": CFSAM}
OWN = ON_MAPS | ON_TOKENS | ON_PYRAMIDS
DETECTORS = {"ssd300_vgg16": 6}  # levels of their pyramids


def attentions(backbone: str | None = None) -> list[str]:
    """The names of the attentions that `create` knows, or of those that fit one backbone: this package's own, then the
    rivals that its papers compare with."""
    if backbone is None:
        known = {*OWN, *RIVALS}
    elif backbone in DETECTORS:
        known = {*ON_PYRAMIDS, *RIVALS}
    else:
        known = {name for place in places(backbone) for name in place.attentions}
    return sorted(known, key=lambda name: (name in RIVALS, name))


def backbones() -> list[str]:
    """The names that `create` knows: timm's of the backbones, torchvision's of the detectors; ImportError without
    timm."""
    return [*filter(places, library("timm").list_models()), *DETECTORS]


def placement_note(backbone: str, attention: str) -> str:
    """One sentence on where an attention stands in a backbone, and for a rival on its settings; ValueError for an
    attention that does not fit the backbone."""
    check_fits(backbone, attention)
    if backbone not in DETECTORS:
        where = place_of(backbone, attention).where
    elif attention in ON_PYRAMIDS:
        where = "once, between the backbone's pyramid and the head"
    else:
        where = "one on the map of each level, before the head"
    settings = f"; {RIVALS[attention].note}" if attention in RIVALS else ""
    return f"{where[0].upper()}{where[1:]}{settings}."


def create(
    backbone: str,
    attention: Attention | None = None,
    backend: str | None = None,
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

    The attentions that these papers compare with go by name too: where SCSA stands, or at the output of a ResNet's
    bottlenecks, as `placement_note` says; after the last stage of a MobileNetV3; on each level of a detector.

    `attention` is a name, None for the plain model, or a callable that makes for a number of channels a module on maps
    (B, C, H, W), which keeps their shape: in every block where SCSA stands, else after the last stage; in a detector
    one on each level. In a ViT the map is that of the grid's tokens at the output of a block, those of the class and
    the registers pass by. A module on a detector's whole pyramid is the caller's to place: an `OnLevels` on the list of
    maps that the plain model's `head` is called with.

    `attention_kwargs` go to what makes the attention (LGA has 8 heads in a ResNet and 12 in a MobileNetV3 unless they
    say otherwise), `kwargs` to `timm.create_model` or torchvision's builder. With `pretrained` the backbone's weights
    are loaded and the attention's are fresh; torchvision's `weights="DEFAULT"` loads a detector as a whole, of 91
    classes.
    `backend` fixes the backend of every fastattn module in the model, whatever `use_backend` says; it means nothing to
    others. A detector's `levels` are "all" six, "shallow", the first three, "deep", the last three, or a slice of them.

    SCSA needs feature maps of at least its window: 7 x 7, which inputs of 224 x 224 give. Raises ValueError for an
    unknown backbone or backend, an attention that does not fit and levels that are not there, ImportError without timm
    or torchvision.
    """
    detects = backbone in DETECTORS
    if not detects and (not places(backbone) or backbone.partition(".")[0] not in backbones()):
        raise ValueError(f"unknown backbone {backbone!r}: fastattn.models knows {', '.join(backbones())}")
    if detects:
        span(levels, DETECTORS[backbone])
    elif levels != "all":
        raise ValueError(f"levels are those of {', '.join(DETECTORS)}, {backbone!r} has none")
    if isinstance(attention, str):
        check_fits(backbone, attention)
    if backend is not None:
        with use_backend(backend):  # ValueError for an unknown name
            pass
    options = attention_kwargs or {}
    if detects:
        weights = {} if pretrained else {"weights_backbone": None}  # torchvision loads the backbone's by default
        model = getattr(library("torchvision.models.detection"), backbone)(**weights | kwargs)
        put_into_detector(model, attention, options, levels)
    else:
        model = library("timm").create_model(backbone, pretrained=pretrained, **kwargs)
        put_into_backbone(model, backbone, attention, options)
    if backend is not None:
        for part in model.modules():
            if isinstance(part, FastModule):
                part.backend = backend
    return model


def put_into_detector(
    model: nn.Module, attention: Attention | None, options: Mapping[str, Any], levels: str | slice
) -> None:
    """Put an attention on a pyramid's maps, or, of those on maps, one on each, before a detector's head."""
    if attention is None:
        return
    make = partial(maker(attention), **options)
    whole = isinstance(attention, str) and attention in ON_PYRAMIDS
    place_in_ssd(model, make if whole else partial(on_each_level, make), levels)


def put_into_backbone(model: nn.Module, backbone: str, attention: Attention | None, options: Mapping[str, Any]) -> None:
    """Put an attention where it stands in a timm model of that name, in the dtype and on the device of the model."""
    if attention is None:
        return
    place = place_of(backbone, attention)
    defaults = place.defaults.get(attention, {}) if isinstance(attention, str) else {}
    make = partial(maker(attention), **{**defaults, **options})
    like = next(model.parameters())
    place.put(model, lambda channels, **own: make(channels, **own).to(like))


def check_fits(backbone: str, attention: str) -> None:
    """ValueError, with the names that fit, unless the attention is one for the backbone."""
    known = attentions(backbone)
    if attention not in known:
        raise ValueError(f"no attention {attention!r} for {backbone!r}, which takes {', '.join(known)}")


def place_of(backbone: str, attention: Attention) -> Place:
    """The place of an attention in a timm model: by its name, or the first for the caller's own."""
    return next(place for place in places(backbone) if callable(attention) or attention in place.attentions)


def maker(attention: Attention) -> Callable[..., nn.Module]:
    """What makes an attention that is given by its name or as a callable."""
    if not isinstance(attention, str):
        return attention
    return RIVALS[attention].make if attention in RIVALS else OWN[attention]


def on_each_level(make: Callable[[int], nn.Module], channels: Sequence[int]) -> PerLevel:
    """An attention on maps for each of the levels of a pyramid."""
    return PerLevel(map(make, channels))
