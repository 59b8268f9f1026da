"""Conceptual attention."""
