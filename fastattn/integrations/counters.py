"""What FLOP counters are to be told, so that they count a fastattn module by its definition: one call for each counter.

The numbers are the multiply-adds of `fastattn.core.flops.multiply_adds`: convolutions and matrix products.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from ..cfsam.module import CFSAM
from ..core.flops import multiply_adds
from ..interaction.module import AggressiveConvPooling, ConceptualAttention, EnhancedInteraction
from ..lga.module import LocalGlobalAttention
from ..scsa.module import PCSA, SCSA, SMSA

MODULES = (
    *(SCSA, SMSA, PCSA, CFSAM, LocalGlobalAttention),
    *(AggressiveConvPooling, ConceptualAttention, EnhancedInteraction),
)
# what fvcore counts besides convolutions and matrix products
_UNCOUNTED = (
    *("batch_norm", "group_norm", "layer_norm", "instance_norm", "adaptive_avg_pool2d"),
    *("upsample_linear1d", "upsample_nearest2d", "upsample_bilinear2d", "grid_sampler"),
)


def thop_ops() -> dict[type[nn.Module], Callable]:
    """Return `custom_ops` for `thop.profile`."""

    def count(module: Any, inputs: tuple, output: Any) -> None:
        module.total_ops += _count(module, inputs)

    return dict.fromkeys(MODULES, count)


def ptflops_options() -> dict[str, Any]:
    """Return further arguments for `ptflops.get_model_complexity_info`.

    What it counts of functions besides modules is left out: the definition that is counted here calls them too.
    """

    def count(module: Any, inputs: tuple, output: Any) -> None:
        module.__flops__ += _count(module, inputs)

    return {
        "custom_modules_hooks": dict.fromkeys(MODULES, count),
        "backend_specific_config": {"count_functional": False},
    }


def fvcore_handles() -> dict[str, Callable]:
    """Return handles for `fvcore.nn.FlopCountAnalysis.set_op_handle`.

    It traces a model, of which standard operators are recorded: it is told to count convolutions and products alone.
    """
    return {f"aten::{name}": lambda inputs, outputs: 0 for name in _UNCOUNTED}


def _count(module: nn.Module, inputs: tuple) -> int:
    """Return the multiply-adds of a module's call, without the hooks of a counter at work."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        part._forward_hooks.clear()
    return multiply_adds(twin, *inputs)
