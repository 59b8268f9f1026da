"""What registered operators share: the library, who serves a backend, who watches a call, and no double backward."""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import flops

LIBRARY = torch.library.Library("fastattn", "FRAGMENT")
DEVICES = ("CPU", "CUDA")
_registered: dict[str, torch._ops.OpOverload] = {}
_watchers = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_is_neg, _is_zero = Tensor.is_neg, Tensor._is_zerotensor  # fast under map


def register(schema: str, run: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Register an operator by its schema, what computes it and what makes its empty results, once; return it.

    Its FLOPs are counted by its definition in `flops.DEFINITIONS`.
    """
    name = schema.partition("(")[0]
    if name in _registered:  # its module is loaded anew
        return _registered[name]
    LIBRARY.define(schema)
    for device in DEVICES:
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"fastattn::{name}", fake, lib=LIBRARY)
    flops.register(name)
    _registered[name] = getattr(torch.ops.fastattn, name).default
    return _registered[name]


def differentiate(forward: torch._ops.OpOverload, backward: Callable) -> None:
    """Give an operator its gradient where it is called by itself, as a program is that torch.export made.

    It takes x, params and options, `save` among them, and returns (out, saved).
    `backward(grad_out, x, saved, params, options, need_x, need_params)` returns the gradients of x and of the params.
    """
    names = [argument.name for argument in forward._schema.arguments]
    place = names.index("save")

    def keep(ctx, inputs, output):
        x, params, *_ = inputs
        ctx.options, ctx.saves = inputs[2:], inputs[place]
        ctx.save_for_backward(x, output[1], *params)

    def grads(ctx, grad_out, _):
        if not ctx.saves:
            raise RuntimeError(f"{forward.name()} was called with save=False: nothing is kept for backward")
        x, saved, *params = ctx.saved_tensors
        need_x, needs, *_ = ctx.needs_input_grad
        grad_x, found = backward(grad_out, x, saved, params, ctx.options, need_x, any(needs))
        found = [grad if need else None for grad, need in zip((grad_x, *found), (need_x, *needs), strict=True)]
        grad_x, *found = once(found, grad_out, x, *params)
        return grad_x, found, *[None] * (len(names) - 2)

    torch.library.register_autograd(forward.name(), grads, setup_context=keep, lib=LIBRARY)


class Servers(dict):
    """The module that serves an operation, by backend; that of Triton is imported when it is first asked for."""

    def __init__(self, name: str, **known: ModuleType):
        super().__init__(known)
        self.name = name

    def __missing__(self, backend: str) -> ModuleType:
        assert backend == "triton", backend
        self[backend] = importlib.import_module(f"fastattn.kernels.{self.name}")
        return self[backend]


def dense(x: Tensor) -> Tensor:
    """Return x if it lies densely as NCHW or channels_last, else its one copy, in the nearer format."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    channels_last = 1 == x.stride(1) < x.stride(3)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def watched(*tensors: Tensor) -> bool:
    """Return whether anything wants to see the registered operator: a compiler, tracer, mode or profiler, or a tensor
    that is not what its memory holds: a subclass, a negated view, a zero without memory.

    Where nothing does, its dispatch is left out: a third of what a short call costs.
    """
    kinds = {*map(type, tensors)}
    return (
        torch.compiler.is_compiling()
        or not kinds <= _PLAIN
        or (Tensor in kinds and any(map(_is_neg, tensors)))
        or any(map(_is_zero, tensors[:2]))  # x, and the output's gradient
        or _watchers() > 0
        or _tracing() is not None
        or torch.autograd._profiler_enabled()
    )


def once(grads: Sequence[Tensor | None], *inputs: Tensor) -> list[Tensor | None]:
    """Return what an autograd Function's backward returns, such that differentiating it raises."""
    if not torch.is_grad_enabled():  # create_graph=False
        return list(grads)
    wanted = [g for g in grads if g is not None]
    results = iter(_Once.apply(len(wanted), *wanted, *inputs))
    return [g if g is None else next(results) for g in grads]


class _Once(torch.autograd.Function):
    """Pass gradients through, and refuse to be differentiated."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "double backward is not supported by fastattn's fast paths; use backend='reference'"
        )
