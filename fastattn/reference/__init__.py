"""Eager PyTorch for every operation: the truth the fast paths are tested against. Imports torch alone."""

from .cfsam import cfsam, partition_attention
from .pcsa import pcsa
from .scsa import scsa
from .smsa import smsa

__all__ = ["cfsam", "partition_attention", "pcsa", "scsa", "smsa"]
