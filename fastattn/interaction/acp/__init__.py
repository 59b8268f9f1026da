"""Aggressive convolution pooling."""
