"""The operations on plain tensors, one function each."""

from .cfsam import cfsam, partition_attention
from .scsa import pcsa, scsa, smsa

__all__ = ["cfsam", "partition_attention", "pcsa", "scsa", "smsa"]
