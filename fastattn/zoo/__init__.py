"""Published plug-in attentions on one family of passes: statistics of x, the gates that they lead to, the product."""

from .axis_gates import ELA as ELA
from .axis_gates import CoordAtt as CoordAtt
from .cbam import CBAM as CBAM
from .channel_gates import ECA as ECA
from .channel_gates import EffectiveSEModule as EffectiveSEModule
from .channel_gates import FcaLayer as FcaLayer
from .channel_gates import SEModule as SEModule
from .layers import CPCA as CPCA
from .layers import EMA as EMA
from .shuffle import ShuffleAttention as ShuffleAttention
from .simam import SimAM as SimAM
