"""The operations on plain tensors, one function each."""

from .cfsam.functional import cfsam, partition_attention
from .interaction.functional import aggressive_conv_pooling, conceptual_attention, enhanced_interaction
from .lga.functional import local_global_attention
from .scsa.functional import pcsa, scsa, smsa

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
