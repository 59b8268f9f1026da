"""Which backend serves a call, and why the others do not.

Every backend answers `unsupported_reasons(name, call)`; an empty list means that it serves the call.
Dispatch, the error of a named backend that cannot serve, `explain` and `python -m fastattn info` all read
that answer.
"""

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from . import native
from .parameters import DTYPES

OPERATIONS = ("scsa", "smsa", "pcsa", "cfsam", "partition_attention", "lga", "acp", "cat", "interaction")
ATTENTIVE = ("cfsam", "partition_attention")  # to tokens, by heads
INTERACTIVE = ("acp", "cat", "interaction")
COMPOSED = (*ATTENTIVE, *INTERACTIVE)  # native: torch's own operators, rearranged
HEAD_DIMS = (16, 32, 64, 128)  # of the Triton attention kernels


class Call(NamedTuple):
    """What decides on a backend; hashable, so that an answer is found once."""

    operation: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    param_dtype: torch.dtype = torch.float32
    autocast: bool = False
    recombination: bool = False
    dropout: bool = False
    transformed: bool = False
    head_dim: int = 32
    maps: int = 0  # of LGA: kernels or scales, whichever are more; of ACP: layers
    window: int = 0  # of ACP's pooling
    channels: int = 0  # of CAT's tokens


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fast_path_reasons(call: Call) -> list[str]:
    """What no fast path serves."""
    reasons = []
    if call.dtype not in DTYPES:
        reasons.append(f"x is {_name(call.dtype)}; the fast paths take float32, bfloat16 and float16")
    elif call.param_dtype is not call.dtype and not (call.autocast and call.param_dtype in DTYPES):
        reasons.append(
            f"x is {_name(call.dtype)} and the parameters are {_name(call.param_dtype)}, outside of autocast"
        )
    if call.recombination:
        reasons.append('down_sample_mode="recombination" has no fast path')
    if call.dropout:
        reasons.append("dropout on the attention while training has no fast path")
    if call.transformed:
        reasons.append("torch.func transforms (vmap, grad, jvp) and forward-mode AD have no fast path")
    return reasons


def _native_reasons(call: Call) -> list[str]:
    state, detail = native.status()
    built = state == "ok" or call.operation in COMPOSED
    reasons = [] if built else [f"the extension fastattn._native: {state}: {detail}"]
    if call.operation == "lga" and call.maps > 15:
        reasons.append(f"{call.maps} kernels or scales; native takes up to 15")
    if call.device != "cpu":
        reasons.append(f"x is on {call.device}; native serves the CPU")
    return reasons + _fast_path_reasons(call)


@functools.cache
def _triton_status() -> str:
    """Return why Triton cannot be used, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        importlib.import_module("fastattn.kernels.scsa.call")
    except Exception as error:  # whatever a broken installation raises is its cause, and the reference serves
        return f"Triton failed to load: {type(error).__name__}: {error}"
    return ""


def _triton_reasons(call: Call) -> list[str]:
    reasons = []
    if call.device != "cuda" and not (call.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        reasons.append(f"x is on {call.device}; triton serves GPUs, and under TRITON_INTERPRET=1 the CPU for tests")
    elif status := _triton_status():  # imports Triton, which is not light
        reasons.append(status)
    if call.operation in ATTENTIVE and call.head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        reasons.append(f"heads have {call.head_dim or 'other numbers of'} channels; the kernels take {known}")
    if call.operation == "lga" and (call.head_dim > 64 or call.maps > 7):
        reasons.append(f"heads of {call.head_dim} channels, {call.maps} kernels or scales; it takes up to 64 and 7")
    if call.operation in INTERACTIVE and (call.maps > 4 or call.window > 16):
        reasons.append(f"{call.maps} layers with windows of {call.window}; the kernels take up to 4 and 16")
    if call.operation in ("cat", "interaction") and call.channels > 768:
        reasons.append(f"tokens of {call.channels} channels; the kernels take up to 768")
    return reasons + _fast_path_reasons(call)


def _cuda_reasons(call: Call) -> list[str]:
    return [f"fastattn._native has no CUDA {call.operation} kernel", *_fast_path_reasons(call)]


# in the order in which "auto" asks
BACKENDS = {
    "native": _native_reasons,
    "cuda": _cuda_reasons,
    "triton": _triton_reasons,
    "reference": lambda call: [],
}


def unsupported_reasons(name: str, call: Call) -> list[str]:
    """Return why a backend does not serve a call; empty if it does."""
    return BACKENDS[name](call)


def choose(wanted: str, *call, **named) -> str:
    """Return the backend that serves the call of these `Call` fields.

    ValueError if `wanted` is unknown, RuntimeError with the reasons if it cannot serve.
    """
    return _choose(wanted, *call, **named)


# what torch.compiler.assume_constant_result does, without its import of Dynamo: the arguments
# decide, and are guarded
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _choose(wanted: str, *fields, **named) -> str:
    call = Call(*fields, **named)
    _check_name(wanted)
    if wanted == "auto":
        if call.device == "cpu":
            native.warn_once()
        return next(name for name in BACKENDS if not unsupported_reasons(name, call))
    reasons = unsupported_reasons(wanted, call)
    if reasons:
        raise RuntimeError(
            f"backend {wanted!r} cannot serve this {call.operation} call: " + "; ".join(reasons)
        )
    return wanted


def _check_name(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(('auto', *BACKENDS))}")


class _Scope(threading.local):
    """What `use_backend` set in this thread; not a ContextVar, which compiled code cannot set."""

    def __init__(self):  # Dynamo guards attributes of the instance, not of the class
        self.backend: str | None = None


_scope = _Scope()
_default = os.environ.get("FASTATTN_BACKEND") or "auto"


def get_backend() -> str:
    """Return the name that calls without a `backend` argument follow."""
    return _scope.backend or _default


def set_backend(name: str) -> None:
    """Make calls without a `backend` argument follow `name`, in all threads; ValueError if it is unknown."""
    global _default
    _check_name(name)
    _default = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make this thread's calls in the block follow `name`, over `set_backend`; ValueError if unknown."""
    _check_name(name)
    before, _scope.backend = _scope.backend, name
    try:
        yield
    finally:
        _scope.backend = before


def available_backends() -> tuple[str, ...]:
    """Return the backends that serve some operation on this machine, in the order of "auto"."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    calls = [Call(operation, device) for operation in OPERATIONS for device in devices]
    return tuple(name for name in BACKENDS if any(not unsupported_reasons(name, call) for call in calls))


def explain(what, x: torch.Tensor | Sequence[torch.Tensor], **options) -> str:
    """Say which backend serves a module or an operation (by name) on x, and why each other one does not.

    x is a tensor, or the list of a pyramid's maps. `options` are those of the operation's functional that matter here:
    `down_sample_mode`, `attn_drop_ratio`, `training`, `dim`, `num_heads`, `backend`; a module brings its own.
    """
    x = x if isinstance(x, torch.Tensor) else x[0]
    dtype = x.dtype
    if not isinstance(what, str):
        options = {**vars(what), **options}
        dtype = next(what.parameters()).dtype
        what = str(what.operation)
    if what not in OPERATIONS:
        raise ValueError(f"unknown operation {what!r}: expected one of {', '.join(OPERATIONS)}")
    call = Call(
        what,
        x.device.type,
        x.dtype,
        dtype,
        torch.is_autocast_enabled(x.device.type),
        options.get("down_sample_mode") == "recombination",
        bool(options.get("training") and options.get("attn_drop_ratio")),
    )
    channels = options.get("dim") or options.get("embed_dim") or (x.shape[-1] if what == "partition_attention" else 0)
    if channels and "num_heads" in options:
        call = call._replace(head_dim=channels // options["num_heads"])
    if what in INTERACTIVE:
        layers, window = options.get("num_layers", 0), options.get("pool_size", 0)
        call = call._replace(maps=layers, window=window, channels=channels)
    wanted = options.get("backend") or get_backend()
    try:
        chosen = f"served by {choose(wanted, *call)} (asked for: {wanted})"
    except RuntimeError as error:
        chosen = str(error)
    lines = [f"{what} on {call.device}, {_name(call.dtype)}: {chosen}"]
    for name in BACKENDS:
        lines.append(f"  {name}: {'; '.join(unsupported_reasons(name, call)) or 'can serve'}")
    return "\n".join(lines)
