"""ACP, CAT and both on a backend, computing in a dtype, which the parameters are cast to; what backends do not take.

On the CPU that is the extension, or torch's operators where it is not there; they compute float16 in float32, which
takes them several times less long.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.backends import declare
from ..core.native import status
from ..core.parameters import cast
from ..core.reference import Affine
from ..core.torch_state import compile_time_constant
from .acp import operation as acp
from .cat import operation as cat


def aggressive_conv_pooling(
    x: Tensor, convs: Sequence[Affine], proj: Affine, pool_size: int, dtype: torch.dtype, backend: str
) -> Tensor:
    """Aggregate a map x (B, C, H, W) with its levels."""
    own = _computed(dtype, backend)
    *convs, proj = affines = [cast(affine, own) for affine in (*convs, proj)]
    if _has_extension(backend):
        return acp.ACP(x.to(own), [part for affine in affines for part in affine], pool_size)
    if backend == "native":
        return acp.compose(x.to(own), convs, proj, pool_size).to(dtype)
    return acp.aggressive_conv_pooling(x, (x.shape[2], x.shape[3]), convs, proj, pool_size, False)


def conceptual_attention(
    x: Tensor, score: Tensor, value: Affine, out: Affine, dtype: torch.dtype, backend: str
) -> Tensor:
    """Align tokens (B, N, C) with concepts."""
    result = torch.promote_types(x.dtype, dtype)  # on the CPU computed in, or the residual would be rounded
    own = dtype if backend == "triton" else _computed(result, backend)
    params = (score.to(own), *cast(value, own), *cast(out, own))
    if backend == "triton":
        return cat.conceptual_attention(x, params)
    return (cat.CAT if _has_extension(backend) else cat.compose)(x.to(own), params).to(result)


def enhanced_interaction(
    x: Tensor,
    size: tuple[int, int],
    convs: Sequence[Affine],
    proj: Affine,
    concepts: tuple[Tensor, Affine, Affine],
    pool_size: int,
    num_prefix_tokens: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Add ACP to the tokens of the grid, then CAT of all."""
    if backend == "triton":
        convs, proj = [cast(conv, dtype) for conv in convs], cast(proj, dtype)
        x = acp.aggressive_conv_pooling(x, size, convs, proj, pool_size, True)
        return conceptual_attention(x, *concepts, dtype, backend)
    prefix, grid = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    map_ = grid.unflatten(1, size).permute(0, 3, 1, 2)
    wider = aggressive_conv_pooling(map_, convs, proj, pool_size, dtype, backend)
    x = grid + wider.permute(0, 2, 3, 1).flatten(1, 2)
    if num_prefix_tokens:
        x = torch.cat([prefix, x], dim=1)
    return conceptual_attention(x, *concepts, dtype, backend)


def _computed(dtype: torch.dtype, backend: str) -> torch.dtype:
    composed = backend == "native" and not _has_extension(backend)
    return torch.float32 if composed and dtype is torch.float16 else dtype


@compile_time_constant
def _has_extension(backend: str) -> bool:
    return backend == "native" and status()[0] == "ok"


def facts(x: Tensor, *, num_layers: int = 0, pool_size: int = 0, **_: Any) -> tuple[int, int, int]:
    """Return what the limits are about: ACP's layers and the window of its pooling, CAT's channels."""
    return num_layers, pool_size, x.shape[-1] if x.dim() == 3 else 0


def _triton_limits(layers: int = 0, window: int = 0, channels: int = 0) -> list[str]:
    reasons = []
    if layers > 4 or window > 16:
        reasons.append(f"{layers} layers with windows of {window}; the kernels take up to 4 and 16")
    if channels > 768:
        reasons.append(f"tokens of {channels} channels; the kernels take up to 768")
    return reasons


for _name in ("acp", "cat", "interaction"):
    declare(_name, facts, triton=_triton_limits)
