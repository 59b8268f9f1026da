"""The compiled extension `fastattn._native`: loading it; the modules beside this file call it with raw pointers.

The extension links against no torch, so everything it is told is checked on this side: dense tensors of the dtypes it
knows, and parameters of the sizes that a plan was made for.
"""

import functools
import importlib
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # first, so that both share one OpenMP runtime

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


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
