"""What the registered operators cost under `torch.utils.flop_counter.FlopCounterMode`, and a model's multiply-adds.

An operator counts what its definition in `fastattn.reference` costs, whatever its backend does instead: convolutions
and matrix products, two operations for each multiply-add, as torch counts them. Softmax, norms, pooling, resizing and
gates count nothing. The number is torch's own count of the definition, run on meta tensors, and for a backward operator
of autograd through it: torch leaves the groups out of a grouped convolution's weight gradient, and so does this.

So the operators that a module runs sum to what eager counts, but where a backend composes torch's operators otherwise:
CFSAM makes two convolutions one where that is less, and its attention on the CPU, torch's, counts the scores again in
backward; LGA on a GPU runs its forward again there, up to the last convolution; ACP and CAT without the extension
follow their algebra. `multiply_adds` counts the definition on every machine. Parameters are taken to be trained all or
none, as the operators take them. Sizes that a compiler left symbolic count nothing.

`torch.utils.flop_counter` imports Triton, so this package does not import it: where somebody does, the formulas join
its registry, and that of a counter at work, when an operation is called.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from .torch_state import active_modes

COUNTER = "torch.utils.flop_counter"
_ATTENTION = "_scaled_dot_product_flash_attention"
# what the compositions use and torch, or 2.11, does not count: operator of aten -> the one that it counts like
LIKE = {
    "addmm_": "addmm",
    "baddbmm_": "baddbmm",
    f"{_ATTENTION}_for_cpu": _ATTENTION,
    f"{_ATTENTION}_for_cpu_backward": f"{_ATTENTION}_backward",
}


# of each operation, by its name: the reference on the names of the arguments that its two operators have in common
DEFINITIONS: dict[str, Callable[..., Any]] = {}
_joined: set[str] = set()


def define(name: str, definition: Callable[..., Any]) -> None:
    """Have an operation's two operators count what its definition costs."""
    DEFINITIONS[name] = definition
    join()


class _Shape(tuple):
    """Stands for a tensor."""


def _frozen(value: Any) -> Any:
    """Return what decides on the count of an argument, hashable."""
    if isinstance(value, Tensor):
        return _Shape(value.shape)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any, needs_grad: bool) -> Any:
    """Return an argument again, with meta tensors for tensors."""
    if isinstance(value, _Shape):
        return torch.empty(value, device="meta", requires_grad=needs_grad)
    return [_thawed(each, needs_grad) for each in value] if isinstance(value, tuple) else value


def _tensors(values: Any) -> list[Tensor]:
    """Return all tensors in nested sequences."""
    if isinstance(values, Tensor):
        return [values]
    return [t for value in values for t in _tensors(value)] if isinstance(values, list | tuple) else []


def _is_symbolic(frozen: Any) -> bool:
    return any(map(_is_symbolic, frozen)) if isinstance(frozen, tuple) else isinstance(frozen, torch.SymInt)


def flops(operator: str, *args: Any, out_val: Any = None) -> int:
    """Return what a call of a registered operator costs, by its name without the namespace: the formula for torch."""
    frozen = _frozen(args)
    return 0 if _is_symbolic(frozen) else _flops(operator, frozen)


@lru_cache(maxsize=4096)
def _flops(operator: str, args: tuple) -> int:
    with ThreadPoolExecutor(1) as thread:  # which no mode of the caller reaches
        return thread.submit(_count, operator, args).result()


def _count(operator: str, args: tuple) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    schema = getattr(torch.ops.fastattn, operator).default._schema
    known = dict(zip((argument.name for argument in schema.arguments), args, strict=True))
    name, _, way = operator.rpartition("_")
    backward = way == "backward"
    need_params, need_x = known.get("need_params", True), known.get("need_x", True)
    arguments = {
        key: _thawed(value, backward and (need_x if key == "x" else need_params)) for key, value in known.items()
    }
    with FlopCounterMode(display=False) as forward:
        outs = DEFINITIONS[name](**arguments)
    if not backward:
        return forward.get_total_flops()
    outs, leaves = ([t for t in _tensors(found) if t.requires_grad] for found in (outs, [*arguments.values()]))
    with FlopCounterMode(display=False) as counter:
        if outs:
            torch.autograd.grad(outs, leaves, [torch.empty_like(out) for out in outs], allow_unused=True)
    return counter.get_total_flops()


def join() -> None:
    """Have `FlopCounterMode` know the formulas, where somebody has imported it, and the counters at work."""
    counter = sys.modules.get(COUNTER)
    if counter is None or not hasattr(counter, "FlopCounterMode"):  # which is being imported
        return
    known = counter.flop_registry
    if len(_joined) < len(DEFINITIONS):
        for other, like in LIKE.items():
            known.setdefault(getattr(torch.ops.aten, other), known[getattr(torch.ops.aten, like)])
        for name, way in product(DEFINITIONS.keys() - _joined, ("forward", "backward")):
            packet = getattr(torch.ops.fastattn, f"{name}_{way}")
            counter.register_flop_formula(packet, get_raw=True)(partial(flops, f"{name}_{way}"))
        _joined.update(DEFINITIONS)
    for mode in active_modes():
        if isinstance(found := getattr(mode, "counter", None), counter.FlopCounterMode):
            found.flop_registry = known | found.flop_registry


def multiply_adds(model: nn.Module, *inputs: Any) -> int:
    """Return the multiply-adds of a model's forward on inputs of these shapes, by the definitions, doing no arithmetic:
    for one image the figure that papers print.

    What the model does must not depend on the values of tensors: of a detector take backbone and head.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from .backends import use_backend

    fakes = FakeTensorMode(allow_non_fake_inputs=True)  # that a module holds outside of its parameters and buffers
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state, inputs = tree_map_only(Tensor, fakes.from_tensor, (tensors, inputs))
    products = sdpa_kernel(SDPBackend.MATH)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), use_backend("reference"), _no_fast_encoder(), products, fakes, counter:
        functional_call(model, state, inputs)
    return counter.get_total_flops() // 2


@contextmanager
def _no_fast_encoder() -> Iterator[None]:
    """Have torch's transformer layers run operators that are counted, not one that is none."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
