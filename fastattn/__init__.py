"""Drop-in PyTorch modules for vision attention, with hand-written kernels for CPU and GPU."""

from . import functional as functional
from . import zoo as zoo
from ._version import __version__ as __version__
from .cfsam.module import CFSAM as CFSAM
from .core.backends import available_backends as available_backends
from .core.backends import explain as explain
from .core.backends import get_backend as get_backend
from .core.backends import set_backend as set_backend
from .core.backends import use_backend as use_backend
from .core.warmup import warmup as warmup
from .integrations.accelerate import accelerate as accelerate
from .integrations.accelerate import restore as restore
from .integrations.insert import insert as insert
from .integrations.insert import remove as remove
from .integrations.optim import param_groups as param_groups
from .interaction.module import AggressiveConvPooling as AggressiveConvPooling
from .interaction.module import ConceptualAttention as ConceptualAttention
from .interaction.module import EnhancedInteraction as EnhancedInteraction
from .lga.module import LocalGlobalAttention as LocalGlobalAttention
from .scsa.module import PCSA as PCSA
from .scsa.module import SCSA as SCSA
from .scsa.module import SMSA as SMSA
