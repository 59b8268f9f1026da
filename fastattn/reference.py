"""Eager PyTorch for every operation: the truth the fast paths are tested against. Imports torch alone."""

from .cfsam.reference import cfsam, partition_attention
from .interaction.reference import aggressive_conv_pooling, conceptual_attention, enhanced_interaction
from .lga.reference import local_global_attention
from .scsa.reference import pcsa, scsa, smsa

__all__ = [
    "aggressive_conv_pooling",
    "cfsam",
    "conceptual_attention",
    "enhanced_interaction",
    "local_global_attention",
    "partition_attention",
    "pcsa",
    "scsa",
    "smsa",
]
