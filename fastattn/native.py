"""The compiled extension `fastattn._native`: loading it, and calling it with raw pointers.

The extension links against no torch, so everything it is told is checked here: dense tensors of the dtypes it
knows, and parameters of the sizes that the plan was made for.
"""

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from . import parameters

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NOTHING = torch.empty(0, dtype=torch.float32)
_data_ptr, _numel = Tensor.data_ptr, Tensor.numel  # fast under map


@functools.cache
def _load():
    """Return (module or None, state, detail); torch comes first, so that both share one OpenMP runtime."""
    try:
        return importlib.import_module("fastattn._native"), "ok", ""
    except ModuleNotFoundError as error:
        if error.name != "fastattn._native":
            return None, "failed to load", str(error)
    except Exception as error:  # whatever a broken build raises is its cause, and the reference serves
        return None, "failed to load", f"{type(error).__name__}: {error}"
    folders = map(Path, sys.modules[__package__].__path__)
    others = [
        file.name for folder in folders for file in folder.glob("_native*") if file.suffix in (".so", ".pyd")
    ]
    if others:
        return (
            None,
            "failed to load",
            f"{others[0]} was built for another Python; this one loads {EXTENSION_SUFFIXES[0]}",
        )
    return (
        None,
        "not built",
        "no C++ compiler was found when fastattn was installed, or the build was skipped",
    )


def status() -> tuple[str, str]:
    """Return the state of the extension, "ok", "not built" or "failed to load", and its cause."""
    return _load()[1:]


def extension():
    """Return the extension module; RuntimeError with the cause if there is none."""
    module, state, detail = _load()
    if module is None:
        raise RuntimeError(f"fastattn._native: {state}: {detail}")
    return module


@functools.lru_cache(maxsize=512)
def _plan(spatial, channel, shape, numels, options, x_dtype, param_dtype, channels_last):
    """Make the extension's plan for one signature; ValueError if the parameters' sizes do not fit it."""
    batch, channels, height, width = shape
    kernels, qkv_bias = parameters.sizes(spatial, channel, channels, numels)
    head_num, window, mode, gate = options if channel else (1, -1, "avg_pool", *options)
    return extension().Plan(
        spatial,
        channel,
        batch,
        channels,
        height,
        width,
        kernels,
        head_num,
        height if window == -1 else window,
        width if window == -1 else window,
        mode == "max_pool" and window != -1,
        gate == "softmax",
        qkv_bias,
        DTYPES[x_dtype],
        DTYPES[param_dtype],
        channels_last,
    )


def _prepare(operation, x: Tensor, params: Sequence[Tensor], options: tuple):
    """Return the plan of this call and its parameters, contiguous and of one dtype: x's or float32."""
    dtype, params, numels = parameters.prepare(x, params)
    channels_last = not x.is_contiguous()
    plan = _plan(
        operation.spatial, operation.channel, x.shape, numels, options, x.dtype, dtype, channels_last
    )
    return plan, params


def saved_size(spatial: bool, channel: bool, shape: Sequence[int], options: tuple) -> int:
    """Return how many floats per sample forward saves for backward."""
    _, channels, height, width = shape
    size = height + width if spatial else 0
    if channel:
        _, window, mode, _ = options
        pixels = 1 if window == -1 else (height // window) * (width // window)
        size += pixels * (2 if mode == "max_pool" and window != -1 else 1) + 3
    return channels * size


def forward(
    operation, x: Tensor, params: Sequence[Tensor], options: tuple, out_dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    """Run the forward of an operation on a dense CPU tensor x (B, C, H, W) of out's dtype; return (out, saved)."""
    if out_dtype is not x.dtype:
        raise ValueError(f"native writes x's own dtype: x is {x.dtype}, out {out_dtype}")
    plan, params = _prepare(operation, x, params, options)
    out = torch.empty_like(x)
    saved = (
        torch.empty((x.shape[0], plan.saved_size), dtype=torch.float32)
        if save
        else torch.empty_like(_NOTHING)
    )
    plan.forward(
        x.data_ptr(),
        out.data_ptr(),
        saved.data_ptr() if save else 0,
        list(map(_data_ptr, params)),
        torch.get_num_threads(),
    )
    return out, saved


def backward(
    operation,
    grad_out: Tensor,
    x: Tensor,
    saved: Tensor,
    params: Sequence[Tensor],
    options: tuple,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor]:
    """Run the backward of an operation; return (grad_x, all parameters' gradients), empty where not needed."""
    plan, params = _prepare(operation, x, params, options)
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grads = params[0].new_empty(sum(map(_numel, params)) if need_params else 0)
    places = accumulate((p.nbytes for p in params[:-1]), initial=grads.data_ptr()) if need_params else ()
    plan.backward(
        grad_out.data_ptr(),
        x.data_ptr(),
        saved.data_ptr(),
        list(map(_data_ptr, params)),
        grad_x.data_ptr() if need_x else 0,
        list(places),
        torch.get_num_threads(),
    )
    return grad_x, grads
