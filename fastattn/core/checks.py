"""Checks that several operations share; ValueError with what was found."""

from torch import Tensor


def check_map(x: Tensor, channels: int) -> None:
    """ValueError unless x is real floating point of shape (B, channels, H, W)."""
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions (B, C, H, W), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be real floating point, got {x.dtype}")
    if x.shape[1] != channels:
        raise ValueError(f"x has {x.shape[1]} channels, expected {channels}")


def check_not_empty(x: Tensor) -> None:
    """ValueError unless the map x has a pixel."""
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"x is {x.shape[2]} x {x.shape[3]}: there is nothing to attend to")


def check_heads(dim: int, num_heads: int, name: str = "dim") -> None:
    """ValueError unless the heads divide the channels, which the message calls by `name`."""
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(f"{name} must be divisible by num_heads, got {dim} and {num_heads}")
