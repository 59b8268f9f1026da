"""Eager PyTorch for every operation: the truth the fast paths are tested against. Imports torch alone."""

from .cfsam.reference import cfsam as cfsam
from .cfsam.reference import partition_attention as partition_attention
from .interaction.reference import aggressive_conv_pooling as aggressive_conv_pooling
from .interaction.reference import conceptual_attention as conceptual_attention
from .interaction.reference import enhanced_interaction as enhanced_interaction
from .lga.reference import local_global_attention as local_global_attention
from .scsa.reference import pcsa as pcsa
from .scsa.reference import scsa as scsa
from .scsa.reference import smsa as smsa
