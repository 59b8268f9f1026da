"""Which backend serves a call, and why the others do not.

Every backend answers `unsupported_reasons(name, call)`; an empty list means that it serves the call. Dispatch, the
error of a named backend that cannot serve, `explain` and `python -m fastattn info` all read that answer. What a backend
does not take of one operation is declared beside that operation, by `declare`.
"""

import copy
import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import cuda, flops, native
from .parameters import DTYPES
from .recomputation import as_first
from .torch_state import autocasts, compile_time_constant, dispatch_modes, tracing_state, transformed

Limits = Callable[..., list[str]]  # facts of a call -> why a backend does not serve it


class Call(NamedTuple):
    """What decides on a backend; hashable, so that an answer is found once."""

    operation: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    param_dtype: torch.dtype = torch.float32
    autocast: bool = False
    transformed: bool = False
    facts: tuple = ()  # what the operation's limits are about, in their order


class _Declared(NamedTuple):
    facts: Callable[..., tuple]
    limits: dict[str, Limits]


_operations: dict[str, _Declared] = {}


def declare(
    operation: str,
    facts: Callable[..., tuple],
    *,
    triton: Limits,
    native: Limits = lambda *facts: [],
    cuda: Limits = lambda *facts: ["there is no kernel yet"],
) -> None:
    """Declare an operation: its facts, from x and its functional's options by name, and each fast backend's limits.

    Native has none where torch's own operators serve what the extension does not.
    """
    _operations[operation] = _Declared(facts, {"native": native, "triton": triton, "cuda": cuda})


def operations() -> tuple[str, ...]:
    """Return the names of all operations."""
    return tuple(_operations)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fast_path_reasons(name: str, call: Call) -> list[str]:
    """What the operation declared, and what no fast path serves."""
    reasons = _operations[call.operation].limits[name](*call.facts)
    if call.dtype not in DTYPES:
        reasons.append(f"x is {_name(call.dtype)}; the fast paths take float32, bfloat16 and float16")
    elif call.param_dtype is not call.dtype and not (call.autocast and call.param_dtype in DTYPES):
        reasons.append(
            f"x is {_name(call.dtype)} and the parameters are {_name(call.param_dtype)}, outside of autocast"
        )
    if call.transformed:
        reasons.append("torch.func transforms (vmap, grad, jvp) and forward-mode AD have no fast path")
    return reasons


def extension_reasons() -> list[str]:
    """Return why the compiled extension cannot be used, for the limits of what needs it."""
    state, detail = native.status()
    return [] if state == "ok" else [f"the extension fastattn._native: {state}: {detail}"]


def _native_reasons(call: Call) -> list[str]:
    here = [] if call.device == "cpu" else [f"x is on {call.device}; native serves the CPU"]
    return here + _fast_path_reasons("native", call)


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
    return reasons + _fast_path_reasons("triton", call)


def _cuda_reasons(call: Call) -> list[str]:
    here = cuda.reasons() if call.device == "cuda" else [f"x is on {call.device}; cuda serves NVIDIA GPUs"]
    return here + _fast_path_reasons("cuda", call)


# in the order in which "auto" asks, but for cuda
BACKENDS: dict[str, Callable[[Call], list[str]]] = {
    "native": _native_reasons,
    "triton": _triton_reasons,
    "cuda": _cuda_reasons,
    "reference": lambda call: [],
}


def unsupported_reasons(name: str, call: Call) -> list[str]:
    """Return why a backend does not serve a call; empty if it does."""
    return BACKENDS[name](call)


@compile_time_constant
def choose(wanted: str, *call: Any) -> str:
    """Return the backend that serves the call of these `Call` fields.

    ValueError if `wanted` is unknown, RuntimeError with the reasons if it cannot serve. What torch.jit.trace records,
    for itself or an exporter, has to run elsewhere: whichever backend is wanted here, that is the reference.
    """
    if _asked.calls is not None:
        _asked.calls.append((wanted, Call(*call)))
        raise _Asked
    if dispatch_modes() > 0:
        flops.join()
    if tracing_state() is not None:
        return "reference"
    return _choose(wanted, *call)


@functools.cache
def _choose(wanted: str, *fields: Any) -> str:
    call = Call(*fields)
    _check_name(wanted)
    if wanted == "auto":
        if call.device == "cpu":
            native.warn_once()
        return next(name for name in _automatic(call) if not unsupported_reasons(name, call))
    reasons = unsupported_reasons(wanted, call)
    if reasons:
        raise RuntimeError(f"backend {wanted!r} cannot serve this {call.operation} call: " + "; ".join(reasons))
    return wanted


def _automatic(call: Call) -> list[str]:
    """Return the backends that "auto" asks, in order: cuda first where it was measured to be the fastest, or not."""
    others = [name for name in BACKENDS if name != "cuda"]
    return others if call.device != "cuda" or cuda.not_faster(call.operation) else ["cuda", *others]


def fastest(operation: str, x: Tensor) -> str:
    """Return the backend that serves x, whose parameters have its dtype, where an exported operator runs."""
    return _choose("auto", operation, x.device.type, x.dtype, x.dtype)


def serving(
    operation: str, x: Tensor, param_dtype: torch.dtype, backend: str | None, *facts: Any
) -> tuple[str, torch.dtype]:
    """Return the backend that serves an operation on x, by its facts, and the dtype that eager computes in.

    RuntimeError with the reasons where the named backend cannot serve.
    """
    device = x.device.type
    autocast = autocasts(device)
    name = choose(
        backend or as_first(get_backend), operation, device, x.dtype, param_dtype, autocast, transformed(), facts
    )
    return name, torch.get_autocast_dtype(device) if autocast else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return the context in which a fast path computes: its dtypes are chosen."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def _check_name(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(('auto', *BACKENDS))}")


class _Scope(threading.local):
    """What `use_backend` set in this thread; not a ContextVar, which compiled code cannot set."""

    def __init__(self) -> None:  # Dynamo guards attributes of the instance, not of the class
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
    calls = [Call(operation, device) for operation in _operations for device in devices]
    return tuple(name for name in BACKENDS if any(not unsupported_reasons(name, call) for call in calls))


class _Asked(Exception):
    """Ends a call of which only the choice of a backend is wanted."""


class _Asking(threading.local):
    calls: list[tuple[str, Call]] | None = None


_asked = _Asking()


def _asks(module: Any, x: Any) -> tuple[str, Call]:
    """Return which backend a module's forward on x wants, and for which call, as it asks `choose`."""
    calls: list[tuple[str, Call]] = []
    _asked.calls = calls
    try:
        module.forward(*module.arguments_of(x))
    except _Asked:
        return calls[0]
    finally:
        _asked.calls = None
    raise AssertionError(f"{type(module).__name__} chose no backend")


def explain(what: Any, x: Tensor | Sequence[Tensor], **options: Any) -> str:
    """Say which backend serves a module or an operation (by name) on x, and why each other one does not.

    x is a tensor, or the list of a pyramid's maps. `options` are those of the operation's functional that matter here:
    `down_sample_mode`, `attn_drop_ratio`, `training`, `dim`, `num_heads`, `backend`; a module brings its own, which
    they replace. ValueError for an unknown operation, and what the module's forward raises for x.
    """
    first = x if isinstance(x, Tensor) else x[0]
    if isinstance(what, str):
        if what not in _operations:
            raise ValueError(f"unknown operation {what!r}: expected one of {', '.join(_operations)}")
        device = first.device.type
        facts = _operations[what].facts(first, **options)
        autocast = autocasts(device)
        call = Call(what, device, first.dtype, first.dtype, autocast, transformed(), facts)
        wanted = options.get("backend") or get_backend()
    else:
        twin = copy.copy(what)
        vars(twin).update(options)
        if twin._runs_through_children():
            return f"{what.operation} on {first.device.type}, {_name(first.dtype)}: served by the module's children"
        wanted, call = _asks(twin, x)
    try:
        chosen = f"served by {choose(wanted, *call)} (asked for: {wanted})"
    except RuntimeError as error:
        chosen = str(error)
    lines = [f"{call.operation} on {call.device}, {_name(call.dtype)}: {chosen}"]
    return "\n".join([*lines, *(f"  {name}: {_answer(name, call)}" for name in BACKENDS)])


def _answer(name: str, call: Call) -> str:
    if reasons := unsupported_reasons(name, call):
        return "; ".join(reasons)
    unknown = cuda.not_faster(call.operation) if name == "cuda" else ""
    return f"can serve; auto does not choose it: {unknown}" if unknown else "can serve"
