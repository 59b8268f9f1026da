"""SCSA and its parts SMSA and PCSA (arXiv 2407.05128), with the authors' constructors and state dicts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.module import FastModule
from . import operation as ops
from .functional import check_channel, check_input, check_spatial, run
from .reference import compress


def _run(operation: str, *arguments: Any) -> Tensor:
    """Run an operation by its name: what FX records."""
    return run(getattr(ops, operation), *arguments)


torch.fx.wrap("_run")  # its tracer takes no step into it

_CONVS = ("local_dwc", "global_dwc_s", "global_dwc_m", "global_dwc_l")
_SPATIAL = (
    *((name, "weight") for name in _CONVS),
    *((name, "bias") for name in _CONVS),
    *((name, kind) for name in ("norm_h", "norm_w") for kind in ("weight", "bias")),
)
_CHANNEL = (("norm", "weight"), ("norm", "bias"), ("q", "weight"), ("k", "weight"), ("v", "weight"))
_BIASES = (("q", "bias"), ("k", "bias"), ("v", "bias"))


class _Attention(FastModule):
    """What the modules share; a subclass names its operation and the order of its parameters (`_slots`)."""

    operation: ops.Operation
    _slots: tuple[tuple[str, str], ...]
    dim: int
    head_num: int
    window_size: int
    group_kernel_sizes: tuple[int, ...]
    qkv_bias: bool
    down_sample_mode: str
    attn_drop_ratio: float
    gate_layer: str
    q: nn.Conv2d
    k: nn.Conv2d
    v: nn.Conv2d

    def _add_spatial(self, kernel_sizes: Sequence[int]) -> None:
        check_spatial(self.dim, kernel_sizes, self.gate_layer)
        self.group_kernel_sizes = tuple(kernel_sizes)
        group = self.dim // 4
        for name, size in zip(_CONVS, kernel_sizes, strict=True):
            setattr(self, name, nn.Conv1d(group, group, size, padding=size // 2, groups=group))
        self.norm_h = nn.GroupNorm(4, self.dim)
        self.norm_w = nn.GroupNorm(4, self.dim)

    def _add_channel(self, head_num: int, window_size: int, qkv_bias: bool, mode: str, drop: float) -> None:
        check_channel(self.dim, head_num, window_size, mode, self.gate_layer, drop)
        self.head_num, self.window_size, self.qkv_bias = head_num, window_size, qkv_bias
        self.down_sample_mode, self.attn_drop_ratio = mode, drop
        if mode == "recombination":
            self.conv_d = nn.Conv2d(self.dim * window_size**2, self.dim, 1, bias=False)
        self.norm = nn.GroupNorm(1, self.dim)
        for name in "qkv":
            setattr(self, name, nn.Conv2d(self.dim, self.dim, 1, bias=qkv_bias, groups=self.dim))

    def _params(self) -> list[Tensor]:
        """Return the parameters in the operation's order."""
        modules: dict[str, Any] = self._modules
        try:  # twice as fast as attributes
            return [modules[name]._parameters[kind] for name, kind in self._slots]
        except KeyError:  # computed: pruned, parametrized, a data-parallel replica; or a child of a child
            return [getattr(self.get_submodule(name), kind) for name, kind in self._slots]

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        recombination = self.down_sample_mode == "recombination"
        return _run(
            self.operation.name.upper(),
            x,
            self.dim,
            self._params(),
            (self.head_num, self.window_size, self.down_sample_mode, self.gate_layer),
            self.conv_d.weight if recombination else None,
            self.attn_drop_ratio if self.training else 0.0,
            self.backend,
        )

    def _through_children(self, x: Tensor) -> Tensor:
        """Call the children, as the authors' modules do."""
        check_input(x, self.dim, self.window_size if self.operation.channel else 1)
        if self.operation.spatial:
            axes = ((x.mean(dim=3), self.norm_h), (x.mean(dim=2), self.norm_w))
            rows, columns = (self._axis_gate(mean, norm) for mean, norm in axes)
            x = x * rows[..., None] * columns[..., None, :]
        return self._channel_gate(x) * x if self.operation.channel else x

    def _axis_gate(self, mean: Tensor, norm: nn.Module) -> Tensor:
        modules: dict[str, Any] = self._modules
        convs = [modules[name] for name in _CONVS]
        parts = [conv(part) for conv, part in zip(convs, mean.chunk(4, dim=1), strict=True)]
        logits = norm(torch.cat(parts, dim=1))
        return logits.softmax(dim=2) if self.gate_layer == "softmax" else logits.sigmoid()

    def _channel_gate(self, x: Tensor) -> Tensor:
        if self.down_sample_mode == "recombination":
            window = self.window_size
            height, width = (size - size % window for size in x.shape[2:])
            pooled = self.conv_d(F.pixel_unshuffle(x[:, :, :height, :width], window))
        else:
            pooled = compress(x, self.window_size, self.down_sample_mode, None)
        y, heads = self.norm(pooled), (self.head_num, self.dim // self.head_num)
        q, k, v = (layer(y).unflatten(1, heads).flatten(3) for layer in (self.q, self.k, self.v))
        attention = (q @ k.transpose(-2, -1) * heads[1] ** -0.5).softmax(dim=-1)
        attention = F.dropout(attention, self.attn_drop_ratio, self.training)
        logits = (attention @ v).mean(dim=-1).reshape(-1, self.dim, 1, 1)
        return logits.softmax(dim=1) if self.gate_layer == "softmax" else logits.sigmoid()

    def _channel_repr(self) -> str:
        return (
            f"head_num={self.head_num}, window_size={self.window_size}, qkv_bias={self.qkv_bias}, "
            f"down_sample_mode={self.down_sample_mode!r}, attn_drop_ratio={self.attn_drop_ratio}"
        )


class SMSA(_Attention):
    """Shared multi-semantic spatial attention: gates x (B, dim, H, W) by rows and columns (arXiv 2407.05128).

    ValueError unless `dim` is divisible by 4 and `group_kernel_sizes` are four odd numbers; in forward, for
    an input that is not real floating point of shape (B, dim, H, W).
    """

    operation = ops.SMSA
    _slots = _SPATIAL

    def __init__(self, dim: int, group_kernel_sizes: Sequence[int] = (3, 5, 7, 9), gate_layer: str = "sigmoid"):
        super().__init__()
        self.dim, self.gate_layer = dim, gate_layer
        self._add_spatial(group_kernel_sizes)
        self._note_children()

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        return _run("SMSA", x, self.dim, self._params(), (self.gate_layer,), None, 0.0, self.backend)

    def extra_repr(self) -> str:
        return f"{self.dim}, group_kernel_sizes={self.group_kernel_sizes}, gate_layer={self.gate_layer!r}"


class PCSA(_Attention):
    """Progressive channel self-attention: gates the channels of x (B, dim, H, W) (arXiv 2407.05128).

    ValueError unless `dim` is divisible by `head_num`, for an unknown mode or gate, and for `window_size=-1`
    with `down_sample_mode="recombination"`; in forward, for an input that is not real floating point of shape
    (B, dim, H, W) or whose H or W is below `window_size`.
    """

    operation = ops.PCSA

    def __init__(
        self,
        dim: int,
        head_num: int = 1,
        window_size: int = 7,
        qkv_bias: bool = False,
        down_sample_mode: str = "avg_pool",
        attn_drop_ratio: float = 0.0,
        gate_layer: str = "sigmoid",
    ):
        super().__init__()
        self.dim, self.gate_layer = dim, gate_layer
        self._add_channel(head_num, window_size, qkv_bias, down_sample_mode, attn_drop_ratio)
        self._slots = _CHANNEL + (_BIASES if qkv_bias else ())
        self._note_children()

    def extra_repr(self) -> str:
        return f"{self.dim}, {self._channel_repr()}, gate_layer={self.gate_layer!r}"


class SCSA(_Attention):
    """Spatial and channel synergistic attention: SMSA, then PCSA, on x (B, dim, H, W) (arXiv 2407.05128).

    `fuse_bn`, `norm_cfg` and `act_cfg` are accepted and have no effect, as in the released module. Raises
    what SMSA and PCSA raise.
    """

    operation = ops.SCSA

    def __init__(
        self,
        dim: int,
        head_num: int = 1,
        window_size: int = 7,
        group_kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        qkv_bias: bool = False,
        fuse_bn: bool = False,
        norm_cfg: Any = None,
        act_cfg: Any = None,
        down_sample_mode: str = "avg_pool",
        attn_drop_ratio: float = 0.0,
        gate_layer: str = "sigmoid",
    ):
        super().__init__()
        self.dim, self.gate_layer = dim, gate_layer
        self._add_spatial(group_kernel_sizes)
        self._add_channel(head_num, window_size, qkv_bias, down_sample_mode, attn_drop_ratio)
        self._slots = _SPATIAL + _CHANNEL + (_BIASES if qkv_bias else ())
        self._note_children()

    def extra_repr(self) -> str:
        kernels = f"group_kernel_sizes={self.group_kernel_sizes}"
        return f"{self.dim}, {self._channel_repr()}, {kernels}, gate_layer={self.gate_layer!r}"
