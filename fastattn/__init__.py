"""Drop-in PyTorch modules for vision attention, with hand-written kernels for CPU and GPU."""

from . import functional
from ._version import __version__
from .cfsam.module import CFSAM
from .core.backends import available_backends, explain, get_backend, set_backend, use_backend
from .core.warmup import warmup
from .integrations.accelerate import accelerate, restore
from .integrations.insert import insert, remove
from .integrations.optim import param_groups
from .interaction.module import AggressiveConvPooling, ConceptualAttention, EnhancedInteraction
from .lga.module import LocalGlobalAttention
from .scsa.module import PCSA, SCSA, SMSA

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
    "accelerate",
    "available_backends",
    "explain",
    "functional",
    "get_backend",
    "insert",
    "param_groups",
    "remove",
    "restore",
    "set_backend",
    "use_backend",
    "warmup",
]
