"""The modules: parameters under the authors' names, validation and repr."""

from .cfsam import CFSAM
from .interaction import AggressiveConvPooling, ConceptualAttention, EnhancedInteraction
from .lga import LocalGlobalAttention
from .scsa import PCSA, SCSA, SMSA

__all__ = [
    "CFSAM",
    "PCSA",
    "SCSA",
    "SMSA",
    "AggressiveConvPooling",
    "ConceptualAttention",
    "EnhancedInteraction",
    "LocalGlobalAttention",
]
