"""Partitioned attention and CFSAM on plain tensors: validation, the choice of a backend, and the call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.backends import serving, without_autocast
from ..core.checks import check_affines, check_heads, check_tensor
from ..core.parameters import check_devices
from ..core.sharded import by_shards
from ..core.torch_state import autocasts
from . import operation as composition
from . import reference
from .partition_attention import HEAD_DIMS
from .partition_attention import partition_attention as attend
from .reference import Block, Level


@by_shards("q", "k", "v")
def partition_attention(
    q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int, *, backend: str | None = None
) -> Tensor:
    """Attend from each token of q to the tokens of its own part in k and v, all (B, N, heads * d), where token n is in
    part n % num_parts (arXiv 2510.14726, eq. 3).

    ValueError for shapes, dtypes or devices that differ, and for channels or tokens that the heads or the parts do not
    divide; RuntimeError with the reasons where a named backend cannot serve.
    """
    _check_qkv(q, k, v, num_parts, num_heads)
    name, dtype = serving("partition_attention", q, q.dtype, backend, _known(q.shape[2] // num_heads))
    if q.dtype is not torch.float64:  # products have autocast's dtype
        q, k, v = (t.to(dtype) for t in (q, k, v))
    if name == "reference" or q.numel() == 0:
        return reference.partition_attention(q, k, v, num_parts, num_heads)
    return attend(q, k, v, num_parts, num_heads, name)


@by_shards("maps")
def cfsam(
    maps: Sequence[Tensor],
    levels: Sequence[Level],
    blocks: Sequence[Block],
    *,
    num_parts: int = 2,
    num_heads: int = 8,
    backend: str | None = None,
) -> list[Tensor]:
    """Exchange features between the maps (B, C_i, H_i, W_i) of a pyramid, which keep their shapes (arXiv 2510.14726,
    eq. 1-5).

    `levels` and `blocks` hold the parameters, see `fastattn.cfsam.reference`. ValueError for maps that do not fit them
    or one another; RuntimeError with the reasons where a named backend cannot serve.
    """
    _check_parameters(levels, blocks)
    check_maps(maps, [(level.local or level.project)[0].shape[1] for level in levels], num_parts)
    x, dim = maps[0], levels[0].project[0].shape[0]
    weights = _weights(levels, blocks)
    odd = _odd(maps)
    name, dtype = serving("cfsam", odd, _odd(weights, x.dtype).dtype, backend, _known(dim // num_heads))
    if name == "reference" or x.shape[0] == 0:
        return reference.cfsam(maps, levels, blocks, num_parts=num_parts, num_heads=num_heads)
    check_devices(x.device, [weight.device for weight in weights])
    with without_autocast(x):
        return composition.cfsam(maps, levels, blocks, num_parts, num_heads, dtype, name)


def _check_parameters(levels: Sequence[Level], blocks: Sequence[Block]) -> None:
    if not levels:
        raise ValueError("levels is empty, expected at least one")
    for level in levels:
        for name, affine in zip(level._fields, level, strict=True):
            if affine is not None or name != "local":
                check_affines(f"a level's {name}", 4, [affine])
    for block in blocks:
        for name, affine in zip(block._fields, block, strict=True):
            check_affines(f"a block's {name}", 1 if name.startswith("norm") else 2, [affine])


def _weights(levels: Sequence[Level], blocks: Sequence[Block]) -> list[Tensor]:
    """Return the weights of all products, whose dtype has to be that of their input."""
    affines = [affine for level in levels for affine in level if affine]
    affines += [affine for b in blocks for affine in (b.q, b.k, b.v, b.proj, b.mlp_in, b.mlp_out)]
    return [weight for weight, _ in affines]


def _odd(tensors: Sequence[Tensor], usual: torch.dtype | None = None) -> Tensor:
    """Return the tensor whose dtype decides on a backend: one that has not the usual one, by default the first one's,
    float64 before all."""
    usual = usual or tensors[0].dtype
    others = [t for t in tensors if t.dtype is not usual]
    wide = [t for t in others if t.dtype is torch.float64]
    return (wide or others or tensors)[0]


def _known(head_dim: int) -> int:
    """Return the head size as a constant, which dynamic shapes would hide from a compiler; 0 for an unusual one."""
    if not torch.compiler.is_compiling():
        return head_dim
    for known in HEAD_DIMS:
        if head_dim == known:
            return known
    return 0


def check_options(
    in_channels: Sequence[int], dim: int, num_parts: int, num_heads: int, mlp_ratio: float, depth: int
) -> None:
    """ValueError unless these are options of CFSAM."""
    if not in_channels or any(channels < 1 for channels in in_channels):
        raise ValueError(f"in_channels must be positive, one number for each level, got {tuple(in_channels)}")
    check_heads(dim, num_heads)
    check_parts(num_parts)
    if int(dim * mlp_ratio) < 1:
        raise ValueError(f"mlp_ratio must leave hidden channels, got {mlp_ratio} of {dim}")
    if depth < 0:
        raise ValueError(f"depth must not be negative, got {depth}")


def check_parts(num_parts: int, tokens: int | None = None) -> None:
    """ValueError unless there is a part, and a token for each."""
    if num_parts < 1:
        raise ValueError(f"num_parts must be at least 1, got {num_parts}")
    if tokens is not None and num_parts > tokens:
        raise ValueError(f"num_parts is {num_parts}, more than the {tokens} tokens")


def _check_qkv(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> None:
    for name, t in (("q", q), ("k", k), ("v", v)):
        check_tensor(t, name)
    if q.dim() != 3:
        raise ValueError(f"q must have 3 dimensions (B, N, channels), got shape {tuple(q.shape)}")
    for name, t in (("k", k), ("v", v)):
        if t.shape != q.shape:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, q has {tuple(q.shape)}")
        if t.dtype != q.dtype or t.device != q.device:
            raise ValueError(f"{name} is {t.dtype} on {t.device}, q is {q.dtype} on {q.device}")
    if not q.is_floating_point():
        raise ValueError(f"q must be real floating point, got {q.dtype}")
    check_heads(q.shape[2], num_heads)
    check_parts(num_parts, q.shape[1])
    if q.shape[1] % num_parts:
        raise ValueError(f"num_parts must divide the tokens, got {num_parts} and {q.shape[1]}")


def check_maps(maps: Sequence[Tensor], channels: Sequence[int], num_parts: int) -> None:
    """Refuse maps unless they are as many, of these channels, and fit one another."""
    listed = isinstance(maps, Sequence)
    if not listed or len(maps) != len(channels):
        found = f"{len(maps)} maps" if listed else "one tensor" if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"expected a list of {len(channels)} maps, one for each level, got {found}")
    for i, x in enumerate(maps):
        check_tensor(x, "level", i)
    mixes = autocasts(maps[0].device.type)  # which casts each map
    for i, (x, expected) in enumerate(zip(maps, channels, strict=True)):
        if x.dim() != 4:
            raise ValueError(f"level {i} must have 4 dimensions (B, C, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"level {i} must be real floating point, got {x.dtype}")
        if x.shape[1] != expected:
            raise ValueError(f"level {i} has {x.shape[1]} channels, expected {expected}")
        if x.shape[2] < 1 or x.shape[3] < 1:
            raise ValueError(f"level {i} is {x.shape[2]} x {x.shape[3]}: there is nothing to attend to")
        for what, own, first in (
            ("a batch of", x.shape[0], maps[0].shape[0]),
            ("dtype", x.dtype, x.dtype if mixes else maps[0].dtype),
            ("device", x.device, maps[0].device),
        ):
            if own != first:
                raise ValueError(f"level {i} has {what} {own}, level 0 has {first}")
    check_parts(num_parts, sum(x.shape[2] * x.shape[3] for x in maps))
