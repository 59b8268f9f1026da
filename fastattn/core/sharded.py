"""Distributed tensors (DTensor): each process computes what it holds of the batch, with whole parameters."""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .tensors import PLAIN, layout


def by_shards(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a function take distributed tensors: `names` are its arguments with a batch, all others are parameters.

    The batch stays sharded and nothing else does, whichever backend serves: parameters are gathered, and their
    gradients are reduced to their own placements. What is returned has the shapes of the first one named, a tensor or a
    list of them. RuntimeError for a parameter that is no distributed tensor where that one is.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        place = [*signature.parameters].index(names[0])

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            x = arguments[place] if len(arguments) > place else options.get(names[0])
            if type(x) in PLAIN:
                return function(*arguments, **options)
            first = x[0] if isinstance(x, list | tuple) and x else x
            if not is_distributed(first):
                return function(*arguments, **options)
            bound = signature.bind(*arguments, **options)
            own, joint = _shares(bound.arguments, names, first)
            bound.arguments.update(own)
            return joint(function(*bound.args, **bound.kwargs), x)

        return run

    return decorate


def is_distributed(x: Any) -> bool:
    loaded = sys.modules.get("torch.distributed.tensor")  # importing it takes long
    return loaded is not None and isinstance(x, loaded.DTensor)


def _shares(arguments: dict[str, Any], names: tuple[str, ...], first: Any) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Return the arguments as this process computes with them, and what joins the processes' results again."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = first.device_mesh
    placements = [placement if placement == Shard(0) else Replicate() for placement in first.placements]
    grads = [Partial() if placement == Shard(0) else Replicate() for placement in placements]

    def share(t: Any) -> Tensor:
        return t.redistribute(mesh, placements).to_local()

    def gather(t: Any) -> Tensor:
        if not isinstance(t, DTensor):
            raise RuntimeError("x is a DTensor and a parameter is not: distribute_module makes it one")
        return t.redistribute(mesh, [Replicate()] * mesh.ndim).to_local(grad_placements=grads)

    def joint(out: Any, like: Any) -> Any:
        if not isinstance(out, Tensor):
            return [joint(*pair) for pair in zip(out, like, strict=True)]
        format_ = layout(out) if out.dim() == 4 else torch.contiguous_format
        stride = torch.empty(like.shape, device="meta", memory_format=format_).stride()
        return DTensor.from_local(out, mesh, placements, shape=like.shape, stride=stride)

    own = {key: tree_map_only(Tensor, share if key in names else gather, value) for key, value in arguments.items()}
    return own, joint
