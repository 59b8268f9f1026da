"""Eager PyTorch for every operation: the truth the fast paths are tested against. Imports torch alone."""

from .pcsa import pcsa
from .scsa import scsa
from .smsa import smsa

__all__ = ["pcsa", "scsa", "smsa"]
