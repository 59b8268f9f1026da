"""The modules: parameters under the authors' names, validation and repr."""

from .scsa import PCSA, SCSA, SMSA

__all__ = ["PCSA", "SCSA", "SMSA"]
