"""Operations that the extension does in one call each way: the registered operators `fastattn::whole_{acp,cat}_forward`
and `_backward`.

`params` is one flat list. x is all that is kept for backward, which returns the parameters' gradients as one float32
tensor, in the order of params.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..native import acp, cat
from ..parameters import unflatten
from .registry import dense, once, register, watched


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


class Whole:
    """One operation: its two registered operators, their fakes, and autograd around them."""

    def __init__(self, name: str, server: ModuleType, lay: Callable[[Tensor], Tensor], options: str = ""):
        """`lay` returns x as the extension takes it: its output lies likewise."""
        self.server, self.lay = server, lay
        self.forward_op = register(
            f"whole_{name}_forward(Tensor x, Tensor[] params{options}) -> Tensor", self._forward, self._fake_forward
        )
        self.backward_op = register(
            f"whole_{name}_backward(Tensor grad_out, Tensor x, Tensor[] params{options}, "
            "bool need_x, bool need_params) -> (Tensor grad_x, Tensor grad_params)",
            self._backward,
            self._fake_backward,
        )

    def __call__(self, x: Tensor, params: Sequence[Tensor], *options) -> Tensor:
        """Run the operation, recording a graph only where a gradient is wanted."""
        x = self.lay(x)
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
            return _Recorded.apply(self, options, x, *params)
        return self.forward(x, params, options)

    def forward(self, x, params, options) -> Tensor:
        return (self.forward_op if watched(x) else self._forward)(x, list(params), *options)

    def backward(self, grad_out, x, params, options, need_x: bool, need_params: bool) -> tuple[Tensor, Tensor]:
        run = self.backward_op if watched(x) else self._backward
        return run(grad_out, x, list(params), *options, need_x, need_params)

    def _forward(self, x, params, *options):
        return self.server.forward(self.lay(x), params, *options)

    def _backward(self, grad_out, x, params, *rest):
        x = self.lay(x)
        if grad_out.stride() != x.stride():
            grad_out = torch.empty_like(x).copy_(grad_out)
        return self.server.backward(grad_out, x, params, *rest)

    def _fake_forward(self, x, params, *options):
        return torch.empty_like(self.lay(x))

    def _fake_backward(self, grad_out, x, params, *rest):
        *_, need_x, need_params = rest
        size = sum(p.numel() for p in params) if need_params else 0
        return torch.empty_like(self.lay(x)) if need_x else x.new_empty(0), x.new_empty(size, dtype=torch.float32)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, operation, options, x, *params):
        ctx.operation, ctx.options = operation, options
        ctx.save_for_backward(x, *params)
        return operation.forward(x, params, options)

    @staticmethod
    def backward(ctx, grad_out):
        x, *params = ctx.saved_tensors
        need_x, *needs = ctx.needs_input_grad[2:]
        grad_x, flat = ctx.operation.backward(grad_out, x, params, ctx.options, need_x, any(needs))
        grads = [grad_x, *(unflatten(flat, params) if any(needs) else params)]
        grads = [g if need else None for g, need in zip(grads, ctx.needs_input_grad[2:], strict=True)]
        return None, None, *once(grads, grad_out, x, *params)


# x (B, C, H, W); params are weight and bias of each convolution, then of the projection
ACP = Whole("acp", acp, dense, ", int pool_size")
# x (B, N, C); params are the scores' weight, then weight and bias of value and of out
CAT = Whole("cat", cat, contiguous)
