"""Gates of the channels by one number each: SE, effective SE, ECA and FcaNet's."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.module import Holder, affine
from .description import Description, Step
from .module import Gate, step_of

MakeLayer = Callable[[], nn.Module]


def make_divisible(value: float, divisor: int) -> int:
    """Return the multiple of a divisor that is nearest, at least the divisor."""
    return max(divisor, int(value + divisor / 2) // divisor * divisor)


class SEModule(Gate):
    """Squeeze-and-Excitation (arXiv 1709.01507): the channels of x (B, channels, H, W) are gated by a bottleneck on
    their means.

    Constructor and state dict are those of timm's `SEModule`. ValueError for a layer that is no known activation.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        *,
        bias: bool = True,
        act_layer: MakeLayer = nn.ReLU,
        gate_layer: MakeLayer = nn.Sigmoid,
    ):
        super().__init__()
        hidden = rd_channels or make_divisible(channels * rd_ratio, rd_divisor)
        self.channels = channels
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.gate = gate_layer()
        self.description = bottleneck(channels, hidden, bias, self.act, self.gate)
        self._note_children()

    def parameters_in_order(self) -> list[Tensor]:
        return with_biases(self.fc1, self.fc2)

    def _through_children(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(means))))


def bottleneck(channels: int, hidden: int, bias: bool, act: nn.Module, gate: nn.Module) -> Description:
    """Return the description of a gate by two layers on the means; ValueError for an unknown activation."""
    steps = step_of(act), step_of(gate)
    if None in steps:
        raise ValueError(f"unknown activation: {type(act).__name__} or {type(gate).__name__}")
    linear = "linear" if bias else "linear_no_bias"
    act_step, gate_step = (Step(step) for step in steps if step)
    return Description("mean", (Step(linear, hidden), act_step, Step(linear, channels), gate_step), "channels")


def with_biases(*layers: nn.Module) -> list[Tensor]:
    """Return the layers' weights and biases, those that there are."""
    return [parameter for layer in layers for parameter in affine(layer) if parameter is not None]


class EffectiveSEModule(Gate):
    """Effective Squeeze-and-Excitation (arXiv 1911.06667): the channels of x (B, channels, H, W) are gated by one layer
    on their means, through a hard sigmoid. Constructor and state dict are those of timm's module."""

    def __init__(self, channels: int, gate_layer: MakeLayer = nn.Hardsigmoid):
        super().__init__()
        self.channels = channels
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = gate_layer()
        gate = step_of(self.gate)
        if gate is None:
            raise ValueError(f"unknown activation: {type(self.gate).__name__}")
        self.description = Description("mean", (Step("linear", channels), Step(gate)), "channels")
        self._note_children()

    def parameters_in_order(self) -> list[Tensor]:
        return with_biases(self.fc)

    def _through_children(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class ECA(Gate):
    """Efficient Channel Attention (arXiv 1910.03151): the channels of x (B, C, H, W) are gated by a convolution along
    their means.

    Where `channels` are given its kernel grows with their logarithm, over `gamma`, as in timm's `EcaModule`, whose
    constructor and state dict, the authors' too, these are. ValueError for an even kernel.
    """

    def __init__(self, channels: int | None = None, kernel_size: int = 3, gamma: float = 2, beta: float = 1):
        super().__init__()
        if channels is not None:
            size = int(abs(math.log2(channels) + beta) / gamma)
            kernel_size = max(size if size % 2 else size + 1, 3)
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.kernel_size = kernel_size
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.gate = nn.Sigmoid()
        self.description = Description("mean", (Step("along_channels", kernel_size), Step("sigmoid")), "channels")
        self._note_children()

    def parameters_in_order(self) -> list[Tensor]:
        return with_biases(self.conv)

    def _through_children(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3))[:, None]  # [B, 1, C]
        return x * self.gate(self.conv(means)).mT[..., None]


GRID = 7  # frequencies in each direction
# FcaNet's best (row, column) frequencies, in their order
FREQUENCIES = (
    *((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)),
    *((5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)),
)


class _Cosines(Holder):
    """The weights (C, dct_h, dct_w) of the pixels."""

    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)


class FcaLayer(Gate):
    """Frequency channel attention (arXiv 2012.11879): the channels of x (B, channel, H, W) are gated by a bottleneck on
    one component each of their discrete cosine transform.

    Constructor and state dict are those of the released `MultiSpectralAttentionLayer`; of its choices of frequencies
    "top1" to "top16" are here, each of which has an equal share of the channels. Maps of another size than dct_h x
    dct_w are pooled to it. ValueError for another choice, for channels that their number does not divide, and for sides
    below 7.
    """

    def __init__(self, channel: int, dct_h: int, dct_w: int, reduction: int = 16, freq_sel_method: str = "top16"):
        super().__init__()
        if freq_sel_method not in ("top1", "top2", "top4", "top8", "top16"):
            raise ValueError(f"freq_sel_method must be one of top1, top2, top4, top8, top16, got {freq_sel_method!r}")
        count = int(freq_sel_method.removeprefix("top"))
        if channel % count or channel < reduction:
            raise ValueError(
                f"channel must be divisible by the {count} frequencies and at least reduction, "
                f"got {channel} and {reduction}"
            )
        if min(dct_h, dct_w) < GRID:
            raise ValueError(f"dct_h and dct_w must be at least {GRID}, got {dct_h} and {dct_w}")
        hidden = channel // reduction
        self.channels, self.size = channel, (dct_h, dct_w)
        self.dct_layer = _Cosines(cosines(dct_h, dct_w, count).repeat_interleave(channel // count, dim=0))
        self.fc = nn.Sequential(
            nn.Linear(channel, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channel, bias=False), nn.Sigmoid()
        )
        steps = Step("linear_no_bias", hidden), Step("relu"), Step("linear_no_bias", channel), Step("sigmoid")
        self.description = Description("weighted", steps, "channels")
        self._note_children()

    def _is_as_made(self) -> bool:
        return not self.dct_layer.weight.requires_grad and super()._is_as_made()

    def parameters_in_order(self) -> list[Tensor]:
        return [self.dct_layer.weight, *with_biases(self.fc[0], self.fc[2])]

    def _through_children(self, x: Tensor) -> Tensor:
        pooled = x if x.shape[2:] == self.size else F.adaptive_avg_pool2d(x, self.size)
        components = (pooled * self.dct_layer.weight).sum(dim=(2, 3))  # [B, C]
        return x * self.fc(components)[..., None, None]

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.size[0]}, {self.size[1]}"


def cosines(height: int, width: int, count: int) -> Tensor:
    """The orthonormal cosine transform's basis maps (count, height, width) of the best frequencies."""
    rows, columns = zip(*FREQUENCIES[:count], strict=True)
    return _basis(height)[[*rows]][:, :, None] * _basis(width)[[*columns]][:, None]


def _basis(side: int) -> Tensor:
    """The frequencies (GRID, side), multiples of side // GRID."""
    frequencies = torch.arange(GRID) * (side // GRID)
    basis = (math.pi / side * frequencies[:, None] * (torch.arange(side) + 0.5)).cos() * (2 / side) ** 0.5
    basis[0] = side**-0.5
    return basis
