"""Checks that several operations share; ValueError, or TypeError for what is no tensor, with what was found."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# ||found - expected|| / ||expected|| within which two ways to compute the same are taken to differ by rounding alone
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_tensor(x: Any, *name: object) -> None:
    """TypeError unless x, which the message calls by the words of `name`, is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{' '.join(map(str, name))} must be a tensor, got {type(x).__name__}")


def check_affines(name: str, dims: int, affines: Iterable[Any]) -> None:
    """Refuse pairs unless each is a weight of so many dimensions, and a bias for each of its rows or None."""
    for affine in affines:
        if affine is None or len(affine) != 2:
            raise TypeError(f"{name} must be a weight and a bias, got {affine and len(affine)}")
        weight, bias = affine
        check_tensor(weight, "the weight of", name)
        if weight.dim() != dims:
            raise ValueError(f"the weight of {name} must have {dims} dimensions, got shape {tuple(weight.shape)}")
        if bias is not None:
            check_tensor(bias, "the bias of", name)
            if bias.dim() != 1 or len(bias) != len(weight):
                raise ValueError(f"the bias of {name} has shape {tuple(bias.shape)}, expected ({len(weight)},)")


def check_map(x: Tensor, channels: int) -> None:
    """Refuse x unless it is real floating point of shape (B, channels, H, W)."""
    check_tensor(x, "x")
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
