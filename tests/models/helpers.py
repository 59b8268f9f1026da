"""What the tests of whole networks share: counts, the order of calls, and that backends agree."""

import copy
from typing import Any

import torch
from torch import nn

import fastattn
from fastattn import models

ATTENTIONS = fastattn.SCSA, fastattn.LocalGlobalAttention, fastattn.EnhancedInteraction
VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


def parameters_in_millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def modules_in_order(model: nn.Module, x: torch.Tensor, *others: type[nn.Module]) -> list[nn.Module]:
    """The leaf modules, the attentions and modules of other types of a model in the order in which they run."""
    order: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, ATTENTIONS + others) or not any(True for _ in module.children()):
            module.register_forward_hook(lambda module, args, out: order.append(module))
    with torch.no_grad():
        model(x)
    return order


def with_scales(name: str, attention: str | None, **options: Any) -> nn.Module:
    """A model whose normalisations have random scales: or a block's output would hardly depend on its attention."""
    torch.manual_seed(0)
    model = models.create(name, attention=attention, num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def assert_backends_agree(model: nn.Module, x: torch.Tensor) -> None:
    """That the logits of the fastest backend are as near to the exact ones as eager's."""
    with torch.no_grad():
        with fastattn.use_backend("reference"):
            eager = model(x)
            truth = copy.deepcopy(model).double()(x.double())
        with fastattn.use_backend("auto"):
            fast = model(x)

    def error(found: torch.Tensor) -> float:
        return float((found.double() - truth).norm() / truth.norm())

    assert error(fast) <= max(1e-5, 2 * error(eager))
