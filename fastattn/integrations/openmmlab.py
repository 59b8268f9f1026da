"""OpenMMLab: this package's modules in mmengine's registry of models, by their names in a config."""

from importlib import import_module
from typing import Any

from ..cfsam.module import CFSAM
from ..interaction.module import AggressiveConvPooling, ConceptualAttention, EnhancedInteraction
from ..lga.module import LocalGlobalAttention
from ..scsa.module import PCSA, SCSA, SMSA

MODULES = SCSA, SMSA, PCSA, CFSAM, LocalGlobalAttention, AggressiveConvPooling, ConceptualAttention, EnhancedInteraction


def register_all(registry: Any = None, force: bool = False) -> None:
    """Register the modules in mmengine's registry of models, or in another one, by their class names.

    A name that somebody else has taken there raises KeyError unless `force`; ImportError without mmengine.
    """
    if registry is None:
        try:
            registry = import_module("mmengine.registry").MODELS
        except ImportError as error:
            raise ImportError("fastattn.integrations.openmmlab needs mmengine: pip install mmengine") from error
    for module in MODULES:
        if registry.module_dict.get(module.__name__) is not module:
            registry.register_module(module=module, force=force)
