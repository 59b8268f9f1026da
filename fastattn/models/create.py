"""Backbones by their timm names, with an attention in them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..modules import PCSA, SCSA, SMSA
from .placement import placement

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {"scsa": SCSA, "smsa": SMSA, "pcsa": PCSA}


def attentions() -> list[str]:
    """The names of the attentions that `create` knows."""
    return sorted(ATTENTIONS)


def backbones() -> list[str]:
    """The names, as in timm, of the backbones that `create` knows; ImportError without timm."""
    return [name for name in timm().list_models() if placement(name)]


def create(
    name: str,
    attention: str | Callable[[int], nn.Module] | None = None,
    *,
    attention_kwargs: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Create a timm backbone with an attention at its paper's place in every block (arXiv 2407.05128, section
    4).

    `attention` is a name, a callable that makes a module for a number of channels, or None for the plain
    backbone; `attention_kwargs` go to its constructor, `kwargs` to `timm.create_model`. With `pretrained` the
    backbone's weights are loaded and the attention's are fresh. SCSA needs feature maps of at least its
    window: 7 x 7, which inputs of 224 x 224 give. Raises ValueError for an unknown backbone or attention,
    ImportError without timm.
    """
    library = timm()
    place = placement(name)
    if place is None or name.partition(".")[0] not in backbones():
        raise ValueError(f"unknown backbone {name!r}: fastattn.models knows {', '.join(backbones())}")
    if isinstance(attention, str) and attention not in ATTENTIONS:
        raise ValueError(f"unknown attention {attention!r}: fastattn.models knows {', '.join(attentions())}")
    model = library.create_model(name, pretrained=pretrained, **kwargs)
    if attention is None:
        return model
    build = ATTENTIONS[attention] if isinstance(attention, str) else attention

    def make(convolution: nn.Conv2d) -> nn.Module:
        return build(convolution.out_channels, **(attention_kwargs or {})).to(convolution.weight)

    place(model, make)
    return model


def timm() -> Any:
    """The timm library, imported when it is first needed."""
    try:
        import timm as library
    except ImportError as error:
        raise ImportError("fastattn.models needs timm: pip install 'fastattn[models]'") from error
    return library
