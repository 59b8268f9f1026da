"""timm: its `create_attn` knows this package's attentions by name, and reparameterizing leaves them trainable."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..models.create import ON_MAPS
from ..models.libraries import library

MAKERS: dict[str, Callable[..., nn.Module]] = {**ON_MAPS, "lga": partial(ON_MAPS["lga"], num_heads=8)}


def register() -> None:
    """Let timm's `create_attn` and `get_attn`, and so its models' `attn_layer`, know "scsa", "smsa", "pcsa" and "lga".

    An attention then stands in the slot that a timm model has for one, in a ResNet at the output of a block, and gets
    what its options say, LGA 8 heads by default. ImportError without timm.
    """
    layers = library("timm.layers")
    if not isinstance(layers.get_attn, Extended):
        rebind(layers.get_attn, Extended(layers.get_attn))


def unregister() -> None:
    """Undo `register`; models that were made stay as they are."""
    layers = library("timm.layers")
    if isinstance(layers.get_attn, Extended):
        rebind(layers.get_attn, layers.get_attn.theirs)


class Extended:
    """timm's `get_attn`, with this package's attentions before its own."""

    def __init__(self, theirs: Callable[..., Any]):
        self.theirs = theirs

    def __call__(self, attn_type: Any) -> Any:
        own = MAKERS.get(attn_type.lower()) if isinstance(attn_type, str) else None
        return partial(attention, own) if own else self.theirs(attn_type)


def attention(
    make: Callable[..., nn.Module],
    channels: int,
    *,
    act_layer: Any = None,
    device: Any = None,
    dtype: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """An attention for so many channels from what timm hands to any; none has an activation to choose."""
    return make(channels, **kwargs).to(device, dtype)


def rebind(old: Any, new: Any) -> None:
    """Put another `get_attn` wherever timm has imported it by name."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "timm" and vars(module).get("get_attn") is old:
            module.get_attn = new  # type: ignore[attr-defined]


def reparameterize_model(model: nn.Module, inplace: bool = False) -> nn.Module:
    """timm's `reparameterize_model`, after which parameters that are still there need a gradient where they did.

    timm (seen in 1.0.31) detaches every parameter of a RepVGG block whose branches it fuses, and keeps the attention
    among them: its weights would be frozen in silence.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model = library("timm.utils").reparameterize_model(model, inplace)
    for name, parameter in model.named_parameters():
        if name in trainable:
            parameter.requires_grad_()
    return model
