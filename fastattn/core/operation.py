"""The one way from a tensor to a kernel: registered operators, autograd around them, and who serves them.

An `Operation` is a pair of operators, `fastattn::NAME_forward` and `fastattn::NAME_backward`. A family's subclass says
what they take and compute; registration, recording, FLOPs and the way past the dispatcher are the same for all.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import reduce, wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from . import flops, native, tensors, torch_state
from .parameters import unflatten
from .tensors import dense, layout

LIBRARY = torch.library.Library("fastattn", "FRAGMENT")
DEVICES = ("CPU", "CUDA")
_registered: dict[str, torch._ops.OpOverload] = {}
_decompositions: dict[torch._ops.OpOverload, Callable] = {}


def register(name: str, schema: str, run: Callable, fake: Callable, any_format: bool) -> torch._ops.OpOverload:
    """Register an operator, what computes it and what makes its empty results, once; return it. A compiler may choose
    the memory format of maps that it takes in any."""
    if name not in _registered:  # else its module is loaded anew
        try:
            LIBRARY.define(name + schema)
        except RuntimeError as error:
            why = "was fastattn's library for C++ loaded before it? After it that changes nothing"
            raise RuntimeError(f"fastattn cannot be imported: {error} ({why})") from error
        for device in DEVICES:
            LIBRARY.impl(name, run, device)
        operator = getattr(torch.ops.fastattn, name).default

        @wraps(fake)
        def traced(*arguments):  # a compiler that is about to meet the operator has asked this before
            torch_state.keep_in_inductor(operator, any_format)
            return fake(*arguments)

        torch.library.register_fake(f"fastattn::{name}", traced, lib=LIBRARY)
        _registered[name] = operator
    return _registered[name]


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """Return what takes the operators apart into standard ones, for `ExportedProgram.run_decompositions`."""
    return dict(_decompositions)


class Operation:
    """An operation of tensors, recorded as one node.

    A subclass has `forward_schema` and `backward_schema`; `forward` and `backward`, which the two operators run, with
    fakes for both; `definition`, the reference on forward's arguments by name, whose FLOPs are counted for both and
    which exporters take apart into standard operators; and for autograd `outputs` and `gradients`.
    """

    forward_schema: str
    backward_schema: str
    materializes = True  # zeros for outputs without a gradient
    any_format = False  # takes maps, contiguous and channels_last alike, and gives its output the format of x

    def __init__(self, name: str) -> None:
        self.name = name
        forward = self.forward_schema, self.forward, self.fake_forward
        backward = self.backward_schema, self.backward, self.fake_backward
        self.forward_op = register(f"{name}_forward", *forward, self.any_format)
        self.backward_op = register(f"{name}_backward", *backward, self.any_format)
        flops.define(name, self.definition)
        if self.forward_op not in _decompositions:  # else its module is loaded anew
            register_decomposition(self.forward_op)(self.decompose)
            _decompositions[self.forward_op] = self.decompose

    def __str__(self) -> str:
        return self.name

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    fake_forward: Callable[..., Any]
    fake_backward: Callable[..., Any]
    definition: Callable[..., Any]

    def defined(self, arguments: Sequence[Any]) -> Any:
        """Return the definition of forward's arguments."""
        names = (argument.name for argument in self.forward_op._schema.arguments)
        return self.definition(**dict(zip(names, arguments, strict=True)))

    def decompose(self, *arguments: Any) -> Any:
        """Return what forward's operator returns, in standard operators; what only backward reads is left empty, which
        has no use in a program that was taken apart."""
        outs, made = self.defined(arguments), self.fake_forward(*arguments)
        if not isinstance(made, tuple):
            return outs
        outs = outs if isinstance(outs, tuple) else (outs,)
        return *outs, *made[len(outs) :]

    def outputs(self, options: tuple, inputs: Sequence[Any], save: bool) -> tuple[Any, Sequence[Tensor | None]]:
        """Run forward; return its output or outputs, and what backward needs."""
        raise NotImplementedError

    def gradients(
        self, options: tuple, kept: Sequence[Any], grads: Sequence[Any], needs: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Run backward; return the gradient of each input, of those that need one."""
        raise NotImplementedError

    def run(self, watchable: Sequence[Tensor], *arguments: Any) -> Any:
        """Run forward, through its operator where one of its tensors, or the call, is watched."""
        return (self.forward_op if tensors.watched(*watchable) else self.forward)(*arguments)

    def run_backward(self, watchable: Sequence[Tensor], *arguments: Any) -> Any:
        """Run backward likewise."""
        return (self.backward_op if tensors.watched(*watchable) else self.backward)(*arguments)

    def call(self, options: tuple, *inputs: Any) -> Any:
        """Run the operation, recording a graph only where a gradient is wanted."""
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            return _Recorded.apply(self, options, *inputs)
        return self.outputs(options, inputs, False)[0]


class FlatOperation(Operation):
    """An operation of x and a flat list of parameters, which one call of its `server`, a module, does each way.

    Its operators may run on another machine than the one that exported them: where no server is, the definition serves.
    `save` tells forward whether to return what backward needs besides x and params, as one float32 tensor, or none.
    Backward returns the parameters' gradients as one tensor, in the order of params.
    """

    server: Any  # has forward, backward and saved

    def __init__(self, name: str, options: str = "", lay: Callable[[Tensor], Tensor] = dense) -> None:
        """`options` are the schema's, and `lay` returns x as the servers take it: its output lies likewise."""
        self.lay, self.any_format = lay, lay is dense
        known = f"Tensor x, Tensor[] params{options}"
        self.forward_schema = f"({known}, bool save) -> (Tensor out, Tensor saved)"
        self.backward_schema = (
            f"(Tensor grad_out, Tensor x, Tensor saved, Tensor[] params{options}, bool need_x, bool need_params) "
            "-> (Tensor grad_x, Tensor grad_params)"
        )
        super().__init__(name)
        _differentiate(self)

    def __call__(self, x: Tensor, params: Sequence[Tensor], *options: Any) -> Tensor:
        """Run the operation, recording a graph only where a gradient is wanted."""
        x = self.lay(x)
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
            return _Recorded.apply(self, options, x, *params)
        return self.run((x, *params), x, params, *options, False)[0]

    def run(self, watchable, x, params, *rest):
        if tensors.watched(*watchable):
            return self.forward_op(x, params, *rest)
        *options, save = rest  # x lies as it is to, and who serves was chosen for this call
        return self.serve(self.server_for(options), x, params, options, save)

    def outputs(self, options, inputs, save):
        x, *params = inputs
        out, saved = self.run(inputs, x, params, *options, save)
        return out, (x, saved, *params)

    def gradients(self, options, kept, grads, needs):
        (grad_out,), (x, saved, *params), (need_x, *need) = grads, kept, needs
        grad_x, flat = self.run_backward((grad_out, *kept), grad_out, x, saved, params, *options, need_x, any(need))
        return [grad_x, *(unflatten(flat, params) if any(need) else params)]

    def forward(self, x, params, *rest):
        *options, save = rest
        x = self.lay(x)
        server = self.server_of(x, options)
        if server is None:
            return self.defined((x, params, *rest)).contiguous(memory_format=layout(x)), _nothing(x)
        return self.serve(server, x, params, options, save)

    def backward(self, grad_out, x, saved, params, *rest):
        *options, need_x, need_params = rest
        x = self.lay(x)
        server = self.server_of(x, options)
        grad_out = grad_out.contiguous(memory_format=layout(x))
        if server is None:
            return self._defined_backward(grad_out, x, params, options, need_x, need_params)
        return self.serve_backward(server, grad_out, x, saved, params, options, need_x, need_params)

    def defined(self, arguments):
        x, params, *rest = arguments
        dtype = reduce(torch.promote_types, (p.dtype for p in params), x.dtype)
        out = super().defined((x.to(dtype), [p.to(dtype) for p in params], *rest))
        return out.to(self.out_dtype(x, rest[:-1]))

    def _defined_backward(self, grad_out, x, params, options, need_x, need_params):
        """Return what backward returns, by autograd through the definition."""
        leaves = [x.detach().requires_grad_(need_x), *(p.detach().requires_grad_(need_params) for p in params)]
        with torch.enable_grad():
            out = self.defined((leaves[0], leaves[1:], *options, True))
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            grads = [*torch.autograd.grad(out, wanted, grad_out, materialize_grads=True)] if wanted else []
        grad_x = grads.pop(0).contiguous(memory_format=layout(x)) if need_x else x.new_empty(0)
        dtype = self.grads_dtype(x, params)
        return grad_x, torch.cat([g.flatten().to(dtype) for g in grads]) if grads else x.new_empty(0, dtype=dtype)

    def fake_forward(self, x, params, *rest):
        *options, save = rest
        x = self.lay(x)
        server = self.server_of(x, options)
        saved = self.saved(server, x, params, options) if save and server else _nothing(x)
        return torch.empty_like(x, dtype=self.out_dtype(x, options)), saved

    def fake_backward(self, grad_out, x, saved, params, *rest):
        *_, need_x, need_params = rest
        size = sum(p.numel() for p in params) if need_params else 0
        grad_params = x.new_empty(size, dtype=self.grads_dtype(x, params))
        return torch.empty_like(self.lay(x)) if need_x else x.new_empty(0), grad_params

    def server_for(self, options: Sequence[Any]) -> Any:
        """Return the module that serves a call for which a fast backend was chosen."""
        return self.server

    def server_of(self, x: Tensor, options: Sequence[Any]) -> Any:
        """Return the module that serves x where this runs, or None for the definition."""
        return self.server_for(options) if native.takes(x) else None

    def serve(self, server, x, params, options, save):
        """Return what forward returns, of x as it is to lie."""
        return server.forward(x, params, *options, save)

    def serve_backward(self, server, grad_out, x, saved, params, options, need_x, need_params):
        """Return what backward returns, on tensors that lie alike."""
        return server.backward(grad_out, x, saved, params, *options, need_x, need_params)

    def saved(self, server: Any, x: Tensor, params: Sequence[Tensor], options: Sequence[Any]) -> Tensor:
        """Return an empty tensor for what forward saves."""
        return server.saved(x, params)

    def out_dtype(self, x: Tensor, options: Sequence[Any]) -> torch.dtype:
        """Return the dtype of forward's output."""
        return x.dtype

    def grads_dtype(self, x: Tensor, params: Sequence[Tensor]) -> torch.dtype:
        """Return the dtype of the parameters' gradients, all in one tensor."""
        return torch.float32


def _nothing(x: Tensor) -> Tensor:
    """Return what is saved where nothing is."""
    return x.new_empty(0, dtype=torch.float32)


class _Recorded(torch.autograd.Function):
    """Autograd around an operation, which costs less than inside of its operators."""

    @staticmethod
    def forward(ctx, operation, options, *inputs):
        outs, kept = operation.outputs(options, inputs, True)
        ctx.operation, ctx.options = operation, options
        ctx.set_materialize_grads(operation.materializes)
        ctx.save_for_backward(*kept)
        return outs

    @staticmethod
    def backward(ctx, *grads):
        needs = ctx.needs_input_grad[2:]
        return None, None, *_gradients(ctx.operation, ctx.options, ctx.saved_tensors, grads, needs)


def _gradients(
    operation: Operation, options: tuple, kept: Sequence[Any], grads: Sequence[Any], needs: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Return the gradients of the inputs that need one, such that differentiating them raises."""
    found = operation.gradients(options, kept, grads, needs)
    found = [grad if need else None for grad, need in zip(found, needs, strict=True)]
    return once(found, *grads, *kept)


def _differentiate(operation: FlatOperation) -> None:
    """Give forward's operator its gradient where it is called by itself, as a program is that torch.export made."""
    operator = operation.forward_op
    count = len(operator._schema.arguments)

    def keep(ctx, inputs, output):
        x, params, *options, save = inputs
        ctx.options, ctx.saves = tuple(options), save
        ctx.save_for_backward(x, output[1], *params)

    def grads(ctx, grad_out, _):
        if not ctx.saves:
            raise RuntimeError(f"{operator.name()} was called with save=False: nothing is kept for backward")
        need_x, needs, *_ = ctx.needs_input_grad
        grad_x, *found = _gradients(operation, ctx.options, ctx.saved_tensors, (grad_out,), (need_x, *needs))
        return grad_x, found, *[None] * (count - 2)

    torch.library.register_autograd(operator.name(), grads, setup_context=keep, lib=LIBRARY)


class Servers(dict):
    """The module that serves an operation, by backend; a GPU's is imported when it is first asked for."""

    def __init__(self, name: str, **known: ModuleType) -> None:
        super().__init__(known)
        self.names = {"triton": f"fastattn.kernels.{name}", "cuda": f"fastattn.{name.partition('.')[0]}.cuda"}

    def __missing__(self, backend: str) -> ModuleType:
        self[backend] = importlib.import_module(self.names[backend])
        return self[backend]


def once(grads: Sequence[Tensor | None], *inputs: Tensor | None) -> Sequence[Tensor | None]:
    """Return what an autograd Function's backward returns, such that differentiating it raises."""
    if not torch.is_grad_enabled():  # create_graph=False
        return grads
    wanted = [g for g in grads if g is not None]
    results = iter(_Once.apply(len(wanted), *wanted, *(t for t in inputs if t is not None)))
    return [g if g is None else next(results) for g in grads]


class _Once(torch.autograd.Function):
    """Pass gradients through, and refuse to be differentiated."""

    @staticmethod
    def forward(ctx, count, *inputs):
        return tuple(t.view_as(t) for t in inputs[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("double backward is not supported by fastattn's fast paths; use backend='reference'")
