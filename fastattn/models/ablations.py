"""What SCSA's paper tries in place of SCSA (arXiv 2407.05128, Table 1), each made for a number of channels.

The paper publishes no code for these: what its table leaves open and was decided is the note of each. What differs in
the operands alone, or in which of this package's modules follows which, runs on their fast paths; `is_fast` tells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..scsa.functional import scsa
from ..scsa.module import PCSA, SCSA, SMSA
from ..scsa.reference import GROUPS

KERNEL_SIZES = (3, 5, 7, 9)
HEADS = 4
GROUP_NORM = partial(nn.GroupNorm, GROUPS)


class EagerSMSA(nn.Module):
    """SMSA of x (B, dim, H, W) in eager PyTorch, with another normalisation of its gates, made by `norm` for `dim`
    channels, with it `first`, before the convolutions, or with convolutions not `shared` by rows and columns.

    By default it is SMSA. ValueError unless `dim` is divisible by 4.
    """

    def __init__(
        self,
        dim: int,
        norm: Callable[[int], nn.Module] = GROUP_NORM,
        *,
        first: bool = False,
        shared: bool = True,
    ):
        super().__init__()
        if dim < GROUPS or dim % GROUPS:
            raise ValueError(f"dim must be divisible by the {GROUPS} channel groups, got {dim}")
        self.first, self.shared = first, shared
        self.convs = depthwise_convs(dim // GROUPS)
        if not shared:
            self.convs_w = depthwise_convs(dim // GROUPS)
        self.norm_h, self.norm_w = norm(dim), norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        a_h = self.gate(x.mean(dim=3), self.convs, self.norm_h)  # [B, C, H]
        a_w = self.gate(x.mean(dim=2), self.convs if self.shared else self.convs_w, self.norm_w)  # [B, C, W]
        return x * a_h[..., None] * a_w[..., None, :]

    def gate(self, mean: Tensor, convs: nn.ModuleList, norm: nn.Module) -> Tensor:
        """Turn one axis mean (B, C, L) into its gate."""
        if self.first:
            mean = norm(mean)
        parts = mean.chunk(GROUPS, dim=1)
        logits = torch.cat([conv(part) for conv, part in zip(convs, parts, strict=True)], dim=1)
        return (logits if self.first else norm(logits)).sigmoid()


def depthwise_convs(width: int) -> nn.ModuleList:
    """A depthwise convolution of so many channels for each kernel size."""
    return nn.ModuleList(nn.Conv1d(width, width, size, padding=size // 2, groups=width) for size in KERNEL_SIZES)


class PixelScaledSCSA(SCSA):
    """SCSA whose channel attention divides its products by the square root of the pixels that they are sums over, those
    of the pooled map, in place of the channels of a head: scaled queries say the same."""

    def __init__(self, dim: int):
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        pixels = (x.shape[2] // self.window_size) * (x.shape[3] // self.window_size)
        scale = (self.dim / max(pixels, 1)) ** 0.5  # no pixel at all is SCSA's to refuse
        p = self._params()
        spatial, norm, (q, k, v) = (p[:4], p[4:8], p[8:10], p[10:12]), p[12:14], p[14:]
        return scsa(x, *spatial, norm, (q * scale, k, v), window_size=self.window_size, backend=self.backend)


def pcsa_first(dim: int) -> nn.Module:
    return nn.Sequential(PCSA(dim), SMSA(dim))


def shuffled_heads(dim: int) -> nn.Module:
    """Each head has channels of all of SMSA's groups; as after a shuffle elsewhere, they stay in their new order."""
    return nn.Sequential(SMSA(dim), nn.ChannelShuffle(GROUPS), PCSA(dim, head_num=HEADS))


def with_eager_smsa(dim: int, **options) -> nn.Module:
    return nn.Sequential(EagerSMSA(dim, **options), PCSA(dim))


def identity(dim: int) -> nn.Module:
    return nn.Identity()


@dataclass(frozen=True)
class Ablation:
    """What makes a variant for a number of channels, called as its own; and in one sentence what the paper leaves open
    about it and was decided, empty where its name says all."""

    make: Callable[..., nn.Module]
    note: str = ""

    def __call__(self, channels: int, **options: Any) -> nn.Module:
        return self.make(channels, **options)


FEWER_GROUPS = (
    "Four groups of convolutions of which some have the same kernel, as depthwise convolutions mix no channels; the "
    "normalisation keeps its four groups, which the released module fixes."
)

SCSA_ABLATIONS: dict[str, Ablation] = {
    "SCSA": Ablation(SCSA),
    "w/o SMSA": Ablation(PCSA),
    "w/o PCSA": Ablation(SMSA),
    "PCSA first": Ablation(pcsa_first),
    "GN before the convolutions": Ablation(
        partial(with_eager_smsa, first=True), "SMSA's two normalisations move before its convolutions, PCSA's stays."
    ),
    "w/o normalisation in SMSA": Ablation(
        partial(with_eager_smsa, norm=identity), "SMSA's two normalisations are left out, PCSA's stays."
    ),
    "GN -> BN": Ablation(
        partial(with_eager_smsa, norm=nn.BatchNorm1d), "SMSA's two normalisations are replaced, PCSA's stays."
    ),
    "GN -> LN": Ablation(
        partial(with_eager_smsa, norm=partial(nn.GroupNorm, 1)),
        "SMSA's two normalisations are replaced, by one over channels and length, as usual on maps; PCSA's stays.",
    ),
    "w/o progressive compression": Ablation(
        partial(SCSA, window_size=-1), "PCSA pools the map to one pixel at once: window_size=-1 of the released module."
    ),
    "multi-head with channel shuffle": Ablation(
        shuffled_heads,
        f"{HEADS} heads; SMSA's output is shuffled by its {GROUPS} groups, and channels stay in their new order.",
    ),
    "unshared convolutions": Ablation(
        partial(with_eager_smsa, shared=False), "Rows and columns have convolutions of their own, of the same kernels."
    ),
    "scale sqrt(HW)": Ablation(PixelScaledSCSA, "H and W are those of the map that PCSA has pooled."),
    "G1(3)": Ablation(partial(SCSA, group_kernel_sizes=(3, 3, 3, 3)), FEWER_GROUPS),
    "G1(7)": Ablation(partial(SCSA, group_kernel_sizes=(7, 7, 7, 7)), FEWER_GROUPS),
    "G2(3, 7)": Ablation(partial(SCSA, group_kernel_sizes=(3, 3, 7, 7)), FEWER_GROUPS),
}


def is_fast(name: str) -> bool:
    """Whether fast paths serve all of a variant that costs time; KeyError for an unknown one."""
    return not any(isinstance(part, EagerSMSA) for part in SCSA_ABLATIONS[name](GROUPS).modules())
