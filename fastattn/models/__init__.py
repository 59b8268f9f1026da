"""The papers' backbones, with an attention placed where its paper places it."""

from .create import attentions, backbones, create

__all__ = ["attentions", "backbones", "create"]
