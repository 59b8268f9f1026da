"""Eager PyTorch for every operation: the truth the fast paths are tested against. Imports torch alone."""

from .cfsam import cfsam, partition_attention
from .interaction import aggressive_conv_pooling, conceptual_attention, enhanced_interaction
from .lga import local_global_attention
from .pcsa import pcsa
from .scsa import scsa
from .smsa import smsa

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
