"""Drop-in PyTorch modules for vision attention, with hand-written kernels for CPU and GPU."""

from . import functional
from ._version import __version__
from .backends import available_backends, explain, get_backend, set_backend, use_backend
from .modules import (
    CFSAM,
    PCSA,
    SCSA,
    SMSA,
    AggressiveConvPooling,
    ConceptualAttention,
    EnhancedInteraction,
    LocalGlobalAttention,
)
from .warmup import warmup

__all__ = [
    "CFSAM",
    "PCSA",
    "SCSA",
    "SMSA",
    "AggressiveConvPooling",
    "ConceptualAttention",
    "EnhancedInteraction",
    "LocalGlobalAttention",
    "__version__",
    "available_backends",
    "explain",
    "functional",
    "get_backend",
    "set_backend",
    "use_backend",
    "warmup",
]
