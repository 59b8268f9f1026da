"""CFSAM, the cross-layer feature self-attention module for pyramids (arXiv 2510.14726)."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.module import FastModule, Holder, affine
from .functional import cfsam, check_maps, check_options, partition_attention
from .reference import EPSILON, Block, Level, laid_as, padded_length, resize

torch.fx.wrap("cfsam")  # FX records the call and takes no step into it


class CFSAM(FastModule):
    """Cross-layer feature self-attention over the maps (B, C_i, H_i, W_i) of a pyramid, a list with the finest first,
    which keep their shapes (arXiv 2510.14726, eq. 1-5).

    `local=False` leaves out the 3x3 convolutions, `fusion=False` the local features beside the global ones, `depth=0`
    the transformer blocks; `conv_bias` is that of all convolutions. ValueError for options that do not fit one another;
    in forward, for another number of maps, and for maps of other channels, batch sizes, dtypes or devices, naming them.
    """

    operation = "cfsam"

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int = 256,
        num_parts: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        depth: int = 1,
        conv_bias: bool = False,
        qkv_bias: bool = True,
        local: bool = True,
        fusion: bool = True,
    ):
        super().__init__()
        check_options(in_channels, dim, num_parts, num_heads, mlp_ratio, depth)
        self.in_channels, self.dim, self.num_parts, self.num_heads = tuple(in_channels), dim, num_parts, num_heads
        self.mlp_ratio, self.depth, self.conv_bias, self.qkv_bias = mlp_ratio, depth, conv_bias, qkv_bias
        self.has_local, self.has_fusion = local, fusion
        self.local: Iterable[Any] = nn.ModuleList(_local(channels, dim, conv_bias, local) for channels in in_channels)
        hidden = int(dim * mlp_ratio)
        self.blocks: Iterable[Any] = nn.ModuleList(_TransformerBlock(dim, hidden, qkv_bias) for _ in range(depth))
        mixed = 2 * dim if fusion else dim
        self.fuse = nn.ModuleList(nn.Conv2d(mixed, channels, 1, bias=conv_bias) for channels in in_channels)
        self._note_children()

    def operands(self) -> tuple[list[Level], list[Block]]:
        """Return the parameters as the operation takes them."""
        levels = [
            Level(affine(local[0]) if self.has_local else None, affine(local[-1]), affine(fuse))
            for local, fuse in zip(self.local, self.fuse, strict=True)
        ]
        return levels, [block.operands() for block in self.blocks]

    def _through_children(self, maps: Sequence[Tensor]) -> list[Tensor]:
        check_maps(maps, self.in_channels, self.num_parts)
        local = [layers(x) for layers, x in zip(self.local, maps, strict=True)]
        tokens = torch.cat([x.flatten(2) for x in local], dim=2).mT  # [B, N, D]
        y = resize(tokens, padded_length(tokens.shape[1], self.num_parts)) if self.depth else tokens
        for block in self.blocks:
            y = block.through_children(y, self.num_parts, self.num_heads)
        mixed = resize(y, tokens.shape[1]).mT.split([x.shape[2] * x.shape[3] for x in maps], dim=2)
        found = [(x, part.reshape(x.shape)) for x, part in zip(local, mixed, strict=True)]
        return [
            laid_as(x, fuse(torch.cat([own, other], dim=1) if self.has_fusion else other))
            for x, fuse, (own, other) in zip(maps, self.fuse, found, strict=True)
        ]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if self._runs_through_children():
            return self._through_children(maps)
        return cfsam(maps, *self.operands(), num_parts=self.num_parts, num_heads=self.num_heads, backend=self.backend)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, dim={self.dim}, num_parts={self.num_parts}, num_heads={self.num_heads}, "
            f"mlp_ratio={self.mlp_ratio}, depth={self.depth}, conv_bias={self.conv_bias}, qkv_bias={self.qkv_bias}, "
            f"local={self.has_local}, fusion={self.has_fusion}"
        )


class _TransformerBlock(Holder):
    """The parameters of a pre-norm block; the operation reads them."""

    def __init__(self, dim: int, hidden: int, qkv_bias: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def through_children(self, y: Tensor, num_parts: int, num_heads: int) -> Tensor:
        """Call the layers on tokens (B, N, D)."""
        normed = self.norm1(y)
        y = y + self.proj(partition_attention(self.q(normed), self.k(normed), self.v(normed), num_parts, num_heads))
        return y + self.mlp(self.norm2(y))

    def operands(self) -> Block:
        mlp_in, _, mlp_out = self.mlp
        modules = (self.norm1, self.q, self.k, self.v, self.proj, self.norm2, mlp_in, mlp_out)
        return Block(*map(affine, modules))


def _local(channels: int, dim: int, bias: bool, convolves: bool) -> nn.Sequential:
    """Return the convolutions of a level under their names, "0" (3x3) and "1" (1x1)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict({"1": nn.Conv2d(channels, dim, 1, bias=bias)})
    if convolves:
        layers = OrderedDict({"0": nn.Conv2d(channels, channels, 3, padding=1, bias=bias), **layers})
    return nn.Sequential(layers)
