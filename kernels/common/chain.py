"""Launches that start while the one ahead of them ends: programmatic dependent launch, from compute capability 9.0 on.

A launch may then start before the one ahead of it, whose ever that is, is complete. Every program of its kernel
therefore calls `begin` before it touches memory. A launch ahead that did so has waited likewise, and one that did not
lets nobody start early: all before are complete, what they wrote is there, and none reads what is now overwritten.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl

OVERLAP = os.environ.get("FASTATTN_OVERLAP") == "1"  # off until it is measured


def overlaps(kernel: Any, device: torch.device) -> bool:
    """Return whether a kernel is to overlap the launch ahead: it has to wait, and the device to know how."""
    if not OVERLAP or device.type != "cuda" or torch.version.cuda is None or not waits(kernel.fn):
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def waits(function: Callable) -> bool:
    """Return whether a kernel's function calls `begin`."""
    return begin.__name__ in function.__code__.co_names


def begin(_semantic: Any = None) -> None:
    """Wait for the launch ahead where this one overlaps it, and let the next one start; interpreted, nothing."""
    if _semantic is not None and getattr(_semantic.builder.options, "launch_pdl", False):
        tl.extra.cuda.gdc_wait(_semantic=_semantic)
        tl.extra.cuda.gdc_launch_dependents(_semantic=_semantic)


setattr(begin, tl.core.TRITON_BUILTIN, True)  # the compiler calls it, and says with which options it compiles
