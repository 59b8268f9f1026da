"""The compiled extension `fastattn._native`: loading it; the modules beside this file call it with raw pointers.

The extension links against no torch, so everything it is told is checked on this side: dense tensors of the dtypes it
knows, and parameters of the sizes that a plan was made for.
"""

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import accumulate
from pathlib import Path

import torch  # first, so that both share one OpenMP runtime
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_numel = Tensor.numel  # fast under map


@functools.cache
def _load():
    """Return (module or None, state, detail)."""
    try:
        return importlib.import_module("fastattn._native"), "ok", ""
    except ModuleNotFoundError as error:
        if error.name != "fastattn._native":
            return None, "failed to load", str(error)
    except Exception as error:  # whatever a broken build raises is its cause, and the reference serves
        return None, "failed to load", f"{type(error).__name__}: {error}"
    folders = map(Path, sys.modules["fastattn"].__path__)
    others = [file.name for folder in folders for file in folder.glob("_native*") if file.suffix in (".so", ".pyd")]
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


def warn_once() -> None:
    """Warn where an extension that is there does not load, the first time, as everything is slower without it."""
    global _warned
    _, state, detail = _load()
    if state == "failed to load" and not _warned:
        _warned = True
        warnings.warn(f"fastattn._native does not load: PyTorch's own operators serve instead: {detail}", stacklevel=2)


_warned = False


def status() -> tuple[str, str]:
    """Return the state of the extension, "ok", "not built" or "failed to load", and its cause."""
    return _load()[1:]


def takes(x: Tensor) -> bool:
    """Return whether the extension is there, and x on its device and of one of its dtypes."""
    return x.device.type == "cpu" and x.dtype in DTYPES and _load()[1] == "ok"


def extension():
    """Return the extension module; RuntimeError with the cause if there is none."""
    module, state, detail = _load()
    if module is None:
        raise RuntimeError(f"fastattn._native: {state}: {detail}")
    return module


def threads() -> int:
    """Return how many threads a call takes: torch's number, and in a child of a process with threads, forked, one: the
    team that its runtime would wait for did not come along."""
    return 1 if _forked else torch.get_num_threads()


def _before_fork() -> None:
    global _has_threads
    tasks = Path("/proc/self/task")
    _has_threads = not tasks.exists() or len([*tasks.iterdir()]) > 1


def _in_child() -> None:
    global _forked
    _forked = _forked or _has_threads


_has_threads = _forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def run(plan, x: Tensor, saved: Tensor, pointers: list[int]) -> Tensor:
    """Run a plan's forward on x, keeping what backward needs in `saved` unless that is empty; return out."""
    out = torch.empty_like(x)
    plan.forward(x.data_ptr(), out.data_ptr(), saved.data_ptr(), pointers, threads())
    return out


def gradients(
    plan,
    grad_out: Tensor,
    x: Tensor,
    saved: Tensor,
    params: Sequence[Tensor],
    pointers: list[int],
    need_x: bool,
    need_params: bool,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Run a plan's backward; return (grad_x, all parameters' gradients in the dtype that the plan writes them in),
    empty where not needed."""
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    sizes = list(map(_numel, params)) if need_params else []
    grads = x.new_empty(sum(sizes), dtype=dtype)
    ends = accumulate((dtype.itemsize * size for size in sizes), initial=grads.data_ptr())
    plan.backward(
        grad_out.data_ptr(),
        x.data_ptr(),
        saved.data_ptr(),
        pointers,
        grad_x.data_ptr(),
        list(ends)[:-1],
        threads(),
    )
    return grad_x, grads
