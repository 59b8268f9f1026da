"""The operations on plain tensors, one function each."""

from .cfsam import cfsam, partition_attention
from .lga import local_global_attention
from .scsa import pcsa, scsa, smsa

__all__ = ["cfsam", "local_global_attention", "partition_attention", "pcsa", "scsa", "smsa"]
