"""The compiled extension `fastattn._native`: loading it, and calling it with raw pointers.

The extension links against no torch, so everything it is told is checked here: dense tensors of the dtypes it
knows, and parameters of the sizes that the plan was made for.
"""

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NOTHING = torch.empty(0, dtype=torch.float32)
_data_ptr, _is_contiguous, _numel = Tensor.data_ptr, Tensor.is_contiguous, Tensor.numel  # fast under map


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
    group = channels // 4
    kernels = tuple(n // group for n in numels[:4]) if spatial else (0, 0, 0, 0)
    expected = (*(k * group for k in kernels), *[group] * 4, *[channels] * 4) if spatial else ()
    qkv_bias = channel and len(numels) == len(expected) + 8
    expected += (channels,) * (5 * channel + 3 * qkv_bias)
    if numels != expected:
        raise ValueError(
            f"parameters of {numels} elements do not fit x of shape {tuple(shape)}: expected {expected}"
        )
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
    dtype = params[0].dtype
    uniform = (dtype is x.dtype or dtype is torch.float32) and [p.dtype for p in params].count(dtype) == len(
        params
    )
    if not uniform or not all(map(_is_contiguous, params)):
        dtype = dtype if uniform else torch.float32
        params = [p.to(dtype).contiguous() for p in params]
    numels = tuple(map(_numel, params))
    channels_last = not x.is_contiguous()
    plan = _plan(
        operation.spatial, operation.channel, x.shape, numels, options, x.dtype, dtype, channels_last
    )
    return plan, params


def forward(
    operation, x: Tensor, params: Sequence[Tensor], options: tuple, save: bool
) -> tuple[Tensor, Tensor]:
    """Run the forward of an operation on a dense CPU tensor x (B, C, H, W); return (out, saved)."""
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
) -> tuple[Tensor, list[Tensor]]:
    """Run the backward of an operation; return (grad_x, grad_params), empty where not needed."""
    plan, ready = _prepare(operation, x, params, options)
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grads = list(map(torch.empty_like, ready)) if need_params else []
    plan.backward(
        grad_out.data_ptr(),
        x.data_ptr(),
        saved.data_ptr(),
        list(map(_data_ptr, ready)),
        grad_x.data_ptr() if need_x else 0,
        list(map(_data_ptr, grads)),
        torch.get_num_threads(),
    )
    if ready is not params and need_params:
        grads = [grad.to(p.dtype) for grad, p in zip(grads, params, strict=True)]
    return grad_x, grads
