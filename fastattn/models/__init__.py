"""The papers' backbones and detectors, with an attention placed where its paper places it."""

from .create import attentions, backbones, create, placement_note
from .levels import OnLevels, PerLevel

__all__ = ["OnLevels", "PerLevel", "attentions", "backbones", "create", "placement_note"]
