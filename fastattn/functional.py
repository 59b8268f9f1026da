"""The operations on plain tensors, one function each."""

from .cfsam.functional import cfsam as cfsam
from .cfsam.functional import partition_attention as partition_attention
from .interaction.functional import aggressive_conv_pooling as aggressive_conv_pooling
from .interaction.functional import conceptual_attention as conceptual_attention
from .interaction.functional import enhanced_interaction as enhanced_interaction
from .lga.functional import local_global_attention as local_global_attention
from .scsa.functional import pcsa as pcsa
from .scsa.functional import scsa as scsa
from .scsa.functional import smsa as smsa
