"""Backbones by their timm names and detectors by their torchvision names, with an attention in them."""

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from typing import Any

from torch import nn

from ..cfsam.module import CFSAM
from ..core.backends import use_backend
from ..core.module import FastModule
from ..interaction.module import EnhancedInteraction
from ..lga.module import LocalGlobalAttention
from ..scsa.module import PCSA, SCSA, SMSA
from .builders import SOURCES, builder
from .levels import span
from .libraries import library
from .placement import Place, places
from .rivals import RIVALS

Attention = str | Callable[..., nn.Module]  # a name, or what makes one for a map's number of channels

# Made for a map's number of channels; for that of tokens, and how many stand before the grid's; and for those of all
# levels of a pyramid, whose maps it takes as a list.
ON_MAPS: dict[str, Callable[..., nn.Module]] = {"scsa": SCSA, "smsa": SMSA, "pcsa": PCSA, "lga": LocalGlobalAttention}
ON_TOKENS: dict[str, Callable[..., nn.Module]] = {"interaction": EnhancedInteraction}
ON_PYRAMIDS: dict[str, Callable[..., nn.Module]] = {"cfsam": CFSAM}
OWN = ON_MAPS | ON_TOKENS | ON_PYRAMIDS


def attentions(backbone: str | None = None) -> list[str]:
    """The names of the attentions that `create` knows, or of those that fit one backbone: this package's own, then the
    rivals that its papers compare with."""
    fitting = {name for place in places(backbone or "") for name in place.attentions}
    known = {*OWN, *RIVALS} if backbone is None else fitting
    return sorted(known, key=lambda name: (name in RIVALS, name))


def backbones() -> list[str]:
    """The names that `create` knows: torchvision's of its detectors, timm's of the backbones, and those of a RetinaNet
    over a transformer, "retinanet_" before timm's; ImportError without timm."""
    return [name for source in SOURCES for name in source.names()]


def placement_note(backbone: str, attention: str, levels: str | slice | None = None) -> str:
    """One sentence on where an attention stands in a backbone or, with `levels`, on its pyramid, and for a rival on its
    settings; ValueError for an attention that does not fit."""
    where = place_of(backbone, attention, levels).where
    settings = f"; {RIVALS[attention].note}" if attention in RIVALS else ""
    return f"{where[0].upper()}{where[1:]}{settings}."


def create(
    backbone: str,
    attention: Attention | None = None,
    backend: str | None = None,
    *,
    attention_kwargs: Mapping[str, Any] | None = None,
    levels: str | slice | None = None,
    pretrained: bool = False,
    checkpoint_path: str | PathLike | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Create a model with an attention where its paper puts it: a timm backbone with SCSA or one of its parts in every
    block (arXiv 2407.05128, section 4), with LGA once, after the last stage (arXiv 2411.09604), or, a ViT or a Swin,
    with the interaction ACP + CAT before the self-attention of every block (arXiv 2412.18778); a detector of
    torchvision with SCSA in every block of its backbone, or with CFSAM between its pyramid and its head (arXiv
    2510.14726); or its RetinaNet over a ViT or a Swin of timm, named "retinanet_vit_tiny_patch16_224", with what these
    take and CFSAM.

    The attentions that these papers compare with go by name too: where SCSA stands, or at the output of a ResNet's
    bottlenecks, as `placement_note` says; after the last stage of a MobileNetV3; on each level of an SSD.

    `attention` is a name, None for the plain model, or a callable that makes for a number of channels a module on maps
    (B, C, H, W), which keeps their shape: in every block where SCSA stands, else after the last stage; in an SSD one on
    each level. In a ViT the map is that of the grid's tokens at the output of a block, those of the class and the
    registers pass by. A module on an SSD's whole pyramid is the caller's to place: an `OnLevels` on the list of maps
    that the plain model's `head` is called with.

    `levels` of a detector's pyramid are "all", "shallow", the first three, "deep", the last three, or a slice of them,
    finest first. CFSAM stands on all unless they say otherwise. Any attention on maps that is given levels stands on
    each of these, not in the backbone.

    `attention_kwargs` go to what makes the attention (LGA has 8 heads in a ResNet and 12 in a MobileNetV3 unless they
    say otherwise), `kwargs` to `timm.create_model`, with `features_only=True` as well, or to torchvision's builder; for
    a RetinaNet over a transformer to torchvision's class, and `backbone_kwargs` to timm. With `pretrained` the
    backbone's weights are loaded and the attention's are fresh; torchvision's `weights="DEFAULT"` loads a detector as a
    whole, of 91 classes. `checkpoint_path` is loaded last: a checkpoint of the same model with its attention, or of the
    plain model, with which the attention's weights are fresh.
    `backend` fixes the backend of every fastattn module in the model, whatever `use_backend` says; it means nothing to
    others.

    SCSA needs feature maps of at least its window, 7 x 7: inputs of 224 x 224, in a detector after it has resized and
    padded them; `size_divisible=224` pads narrow images as far. Raises ValueError for an unknown backbone or backend,
    an attention that does not fit and levels that are not there, ImportError without timm or torchvision, RuntimeError
    for a checkpoint of another model.
    """
    build = builder(backbone)
    place = place_of(backbone, attention, levels)
    where = span("all" if levels is None else levels, place.levels) if place.levels else ()
    if backend is not None:
        with use_backend(backend):  # ValueError for an unknown name
            pass
    model = build(backbone, pretrained, **kwargs)
    plain = set(model.state_dict())
    if attention is not None:
        like = next(model.parameters())
        defaults = place.defaults.get(attention, {}) if isinstance(attention, str) else {}
        make = partial(maker(attention), **{**defaults, **(attention_kwargs or {})})
        made: list[nn.Module] = []

        def fresh(channels: Any, **own: Any) -> nn.Module:
            made.append(make(channels, **own).to(like))
            return made[-1]

        place.put(model, fresh, *where)
        if not made:
            raise ValueError(f"no place for {attention!r} in {backbone!r} with these options: it stands {place.where}")
    if checkpoint_path is not None:
        complete = partial(completed, set(model.state_dict()) - plain)
        library("timm.models").load_checkpoint(model, str(checkpoint_path), filter_fn=complete)
    if backend is not None:
        for part in model.modules():
            if isinstance(part, FastModule):
                part.backend = backend
    return model


def place_of(backbone: str, attention: Attention | None, levels: str | slice | None) -> Place:
    """The place of an attention in a model, or, with `levels`, on its pyramid: by its name, or for the caller's own or
    none the first; ValueError, with the names that fit, unless there is one."""
    fitting = [place for place in places(backbone) if not isinstance(attention, str) or attention in place.attentions]
    if not fitting:
        known = ", ".join(attentions(backbone))
        raise ValueError(f"no attention {attention!r} for {backbone!r}, which takes {known}")
    if levels is not None:
        fitting = [place for place in fitting if place.levels]
    if not fitting:
        raise ValueError(f"levels are those of a detector's pyramid: {attention!r} in {backbone!r} stands on none")
    return fitting[0]


def maker(attention: Attention) -> Callable[..., nn.Module]:
    """What makes an attention that is given by its name or as a callable."""
    if not isinstance(attention, str):
        return attention
    return RIVALS[attention].make if attention in RIVALS else OWN[attention]


def completed(own: set[str], state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A checkpoint, which with nothing of the attention's `own` is one of the plain model and gets the fresh ones."""
    fresh = model.state_dict()
    return state | {name: fresh[name] for name in own} if own.isdisjoint(state) else state
