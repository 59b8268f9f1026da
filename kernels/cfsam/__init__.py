"""Attention in partitions, and the tokens of a pyramid."""
