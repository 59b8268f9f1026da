"""Token gather: flatten + concatenate + add + resize + LayerNorm in one pass, and its backward in another; plans and
calls of `token_gather_forward` and `token_gather_backward`.

A level is a map (B, D, H, W), contiguous or channels_last, or a token matrix (B, N, D), which lies like the latter.
Levels behind each other are N tokens of D channels, which are resized to M.
"""

import functools
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import gcd
from typing import Any

import torch
from torch import Tensor

from ..common import batch_sum, tiles, tuning
from ..common.launch import Grid, Launch, aligned, processors
from ..common.run import run
from .token_gather_backward import token_gather_backward_kernel
from .token_gather_forward import token_gather_kernel

LEVELS = 8  # that one launch takes
Levels = tuple[tuple[int, bool], ...]  # of each: pixels, whether channels are neighbours in memory
PROGRAMS = 2  # of the backward pass per multiprocessor, each with a row of parameter gradients


@functools.lru_cache(maxsize=512)
def forward_plan(
    levels: Levels, batch: int, channels: int, length: int, dtypes: tuple, add: bool, norm: bool, eps: float,
    device: torch.device, alignment: tuple,
) -> Launch:  # fmt: skip
    """Return the launch of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    sizes, constants, num_warps = _blocks(levels, channels, length, wide=dtypes[0].itemsize == 2)
    constants |= {"ADD": add, "NORM": norm, "EPS": eps}

    def grid(constants: Mapping[str, Any]) -> Grid:
        return batch * -(-length // constants["BT"]), 1, 1

    names = ("maps", "addend", "weight", "bias", "tokens", "normed", "statistics")
    return tuning.apply(
        Launch(token_gather_kernel, grid, names, names, sizes, constants, num_warps, context=(device, *dtypes))
    )


@functools.lru_cache(maxsize=512)
def backward_plan(
    levels: Levels, batch: int, channels: int, length: int, dtypes: tuple, add: bool, norm: bool, params: bool,
    device: torch.device, alignment: tuple,
) -> tuple[tuple[Launch, ...], int]:  # fmt: skip
    """Return the launches of one signature and their programs, each of which has a row of scratch."""
    sizes, constants, num_warps = _blocks(levels, channels, length)
    constants |= {"GRAD_TOKENS": add, "NORM": norm, "PARAMS": params}
    programs = batch * -(-sizes["N"] // constants["BT"])
    if params:
        programs = min(programs, PROGRAMS * processors(device))
    tensors = ("grad_tokens", "grad_normed", "tokens", "statistics", "weight", "grads", "scratch")
    names = (*tensors, "grad_params")
    context = (device, *dtypes)
    first = Launch(
        token_gather_backward_kernel, lambda _: (programs, 1, 1), tensors, names, {"B": batch, **sizes}, constants,
        num_warps, context=context,
    )  # fmt: skip
    if not params:
        return (tuning.apply(first),), programs
    block, rows = 16, tiles.fit(256, programs)[0]  # 64 bytes of many rows: there are more of them than of blocks
    second = Launch(
        batch_sum.batch_sum_kernel, lambda _: (-(-2 * channels // block), 1, 1), ("scratch", "grad_params"), names,
        {"B": programs, "SCRATCH": 2 * channels, "GRADS": 2 * channels}, {"BB": rows, "BLOCK": block},
        tiles.warps(rows * block), context=context,
    )  # fmt: skip
    return (tuning.apply(first), tuning.apply(second)), programs


def _blocks(
    levels: Levels, channels: int, length: int, wide: bool = False
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return sizes, constants and warps that both passes share."""
    pixels = [size for size, _ in levels]
    count = sum(pixels)
    kinds = [
        0 if neighbours else gcd(start, size, 1 if length != count else 8).bit_length()
        for start, (size, neighbours) in zip(accumulate(pixels, initial=0), levels, strict=False)
    ]
    # a row of a plane that is read is 64 bytes, with 256 channels
    elements = tiles.TILE * (2 if wide and any(kinds) and length == count else 1)
    rows, columns = max(1, elements // tiles.power(channels)), tiles.power(channels)
    tokens = min(rows, 64, tiles.power(min(length, count)))
    formats = sum(kind << 4 * i for i, kind in enumerate(kinds))
    sizes: dict[str, Any] = {"D": channels, "N": count, "M": length, "PIXELS": tuple(pixels), "FORMATS": formats}
    constants = {
        "LEVELS": len(levels),
        "KINDS": sum(1 << kind for kind in set(kinds)),
        "ALIGN": tiles.alignment(channels),
        "RESIZE": length != count,
        "BT": tokens,
        "BD": columns,
    }
    return sizes, constants, min(16, max(4, tokens * columns // 512))


def _level(source: Tensor) -> tuple[int, bool]:
    """Return a level's pixels, and whether its channels are neighbours in memory."""
    if source.dim() == 3:
        return source.shape[1], True
    pixels = source.shape[2] * source.shape[3]
    return pixels, not source.is_contiguous()


def _as_tokens(source: Tensor) -> Tensor:
    """Return a view (B, N, D) of a level."""
    return source if source.dim() == 3 else source.flatten(2).mT


def forward(
    sources: Sequence[Tensor], addend: Tensor | None, weight: Tensor | None, bias: Tensor | None, length: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return tokens (B, length, D), normalised and not, and the float32 statistics (B, length, 2): mean, 1 / deviation.

    Sources are dense maps (B, D, H, W) or contiguous token matrices (B, N, D), all of one dtype; without a weight
    there is no LayerNorm, and what it returns is empty.
    """
    if len(sources) > LEVELS:  # more than a launch takes: the last, small ones are concatenated before
        sources = [*sources[: LEVELS - 1], torch.cat(list(map(_as_tokens, sources[LEVELS - 1 :])), 1)]
    batch, _, channels = _as_tokens(sources[0]).shape
    norm = weight is not None
    tokens = sources[0].new_empty((batch, length, channels))
    normed = torch.empty_like(tokens) if norm else tokens.new_empty(0)
    statistics = tokens.new_empty((batch, length, 2) if norm else 0, dtype=torch.float32)
    others = [tokens if tensor is None else tensor for tensor in (addend, weight, bias)]  # stand-ins are not read
    launch = forward_plan(
        tuple(map(_level, sources)), batch, channels, length, (tokens.dtype, others[1].dtype, others[2].dtype),
        addend is not None, norm, eps, tokens.device, aligned(*sources, others[0]),
    )  # fmt: skip
    run((launch,), (tuple(sources), *others, tokens, normed, statistics))
    return tokens, normed, statistics


def backward(
    grad_tokens: Tensor | None, grad_normed: Tensor | None, tokens: Tensor | None, statistics: Tensor | None,
    weight: Tensor | None, grads: Sequence[Tensor], need_params: bool,
) -> Tensor:  # fmt: skip
    """Write the sources' gradients, and return weight's and bias's (2 * D), empty unless needed.

    Without a norm tokens, statistics and weight are None; an addend's gradient is that of the token matrix beside it.
    """
    given = grad_tokens if grad_normed is None else grad_normed
    assert given is not None
    batch, length, channels = given.shape
    maps, tail = list(grads), []
    if len(maps) > LEVELS:
        tail = list(map(_as_tokens, grads[LEVELS - 1 :]))
        maps[LEVELS - 1 :] = [given.new_empty((batch, sum(grad.shape[1] for grad in tail), channels))]
    # stand-ins for what is not there are not read
    tensors = [given if t is None else t for t in (grad_tokens, grad_normed, tokens, statistics, weight)]
    gamma = tensors[-1]
    launches, programs = backward_plan(
        tuple(map(_level, maps)), batch, channels, length, (given.dtype, gamma.dtype),
        grad_tokens is not None, weight is not None, need_params, given.device, aligned(*tensors[:3], *maps),
    )  # fmt: skip
    scratch = given.new_empty((programs, 2 * channels) if need_params else 0, dtype=torch.float32)
    grad_params = gamma.new_empty(2 * channels if need_params else 0)
    run(launches, (*tensors, tuple(maps), scratch, grad_params))
    if tail:
        for part, grad in zip(maps[-1].split([grad.shape[1] for grad in tail], 1), tail, strict=True):
            grad.copy_(part)
    return grad_params
