"""What an optimizer decays."""

from collections.abc import Collection
from typing import Any

from torch import nn

from ..core.module import FastModule

# of this package's modules, by their last name: what stands for no linear map, though it has more than one dimension
UNDECAYED = ("position_encoding",)


def param_groups(
    model: nn.Module, weight_decay: float = 0.05, no_weight_decay: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return a model's trained parameters for an optimizer, in one group with weight decay and one without.

    Without are, as in timm, parameters of one dimension or none, and those that the model's own `no_weight_decay()` or
    the argument names; and of this package's modules those that scale channels, whatever their shape, as SCSA's
    queries, keys and values (C, 1, 1, 1) do, and LGA's position encoding.
    """
    own = getattr(model, "no_weight_decay", tuple)
    named = {*no_weight_decay, *(own() if callable(own) else ())}
    ours = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, FastModule)
        for name, parameter in module.named_parameters()
        if parameter.numel() == max(parameter.shape, default=1) or name.endswith(UNDECAYED)
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.dim() > 1 and id(parameter) not in ours and name not in named].append(parameter)
    decays = {True: weight_decay, False: 0.0}
    return [{"params": groups[decay], "weight_decay": decays[decay]} for decay in (False, True) if groups[decay]]
