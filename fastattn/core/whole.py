"""Operations that the extension does in one call each way: the registered operators `fastattn::lga_{forward,backward}`
and `fastattn::whole_{acp,cat}_{forward,backward}`.

`params` is one flat list. Forward returns what it keeps for backward besides x, as one float32 tensor: LGA z; ACP
nothing; CAT both softmaxes' greatest scores and inverse sums, the tokens' means, concept tokens and what these give
back, but nothing of N x K. Backward returns the parameters' gradients as one float32 tensor, in the order of params.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..interaction.acp import native as acp
from ..interaction.cat import native as cat
from ..lga import native as lga
from .parameters import unflatten
from .registry import dense, differentiate, once, register, watched


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


class Whole:
    """One operation: its two registered operators, their fakes, and autograd around them."""

    def __init__(self, name: str, server: ModuleType, lay: Callable[[Tensor], Tensor], options: str = ""):
        """`lay` returns x as the extension takes it: its output lies likewise."""
        self.server, self.lay = server, lay
        self.forward_op = register(
            f"{name}_forward(Tensor x, Tensor[] params{options}, bool save) -> (Tensor out, Tensor saved)",
            self._forward,
            self._fake_forward,
        )
        self.backward_op = register(
            f"{name}_backward(Tensor grad_out, Tensor x, Tensor saved, Tensor[] params{options}, "
            "bool need_x, bool need_params) -> (Tensor grad_x, Tensor grad_params)",
            self._backward,
            self._fake_backward,
        )

        differentiate(self.forward_op, self._gradients)

    def _gradients(self, grad_out, x, saved, params, rest, need_x: bool, need_params: bool):
        *options, _ = rest
        grad_x, flat = self.backward(grad_out, x, saved, params, options, need_x, need_params)
        return grad_x, unflatten(flat, params) if need_params else params

    def __call__(self, x: Tensor, params: Sequence[Tensor], *options) -> Tensor:
        """Run the operation, recording a graph only where a gradient is wanted."""
        x = self.lay(x)
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
            return _Recorded.apply(self, options, x, *params)
        return self.forward(x, params, options, False)[0]

    def forward(self, x, params, options, save: bool) -> tuple[Tensor, Tensor]:
        return (self.forward_op if watched(x, *params) else self._forward)(x, list(params), *options, save)

    def backward(self, grad_out, x, saved, params, options, need_x: bool, need_params: bool) -> tuple[Tensor, Tensor]:
        run = self.backward_op if watched(grad_out, x, saved, *params) else self._backward
        return run(grad_out, x, saved, list(params), *options, need_x, need_params)

    def _forward(self, x, params, *rest):
        return self.server.forward(self.lay(x), params, *rest)

    def _backward(self, grad_out, x, saved, params, *rest):
        x = self.lay(x)
        if grad_out.stride() != x.stride():
            grad_out = torch.empty_like(x).copy_(grad_out)
        return self.server.backward(grad_out, x, saved, params, *rest)

    def _fake_forward(self, x, params, *rest):
        x = self.lay(x)
        saved = self.server.saved(x, params) if rest[-1] else x.new_empty(0, dtype=torch.float32)
        return torch.empty_like(x), saved

    def _fake_backward(self, grad_out, x, saved, params, *rest):
        *_, need_x, need_params = rest
        size = sum(p.numel() for p in params) if need_params else 0
        return torch.empty_like(self.lay(x)) if need_x else x.new_empty(0), x.new_empty(size, dtype=torch.float32)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, operation, options, x, *params):
        out, saved = operation.forward(x, params, options, True)
        ctx.operation, ctx.options = operation, options
        ctx.save_for_backward(x, saved, *params)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, saved, *params = ctx.saved_tensors
        need_x, *needs = ctx.needs_input_grad[2:]
        grad_x, flat = ctx.operation.backward(grad_out, x, saved, params, ctx.options, need_x, any(needs))
        grads = [grad_x, *(unflatten(flat, params) if any(needs) else params)]
        grads = [g if need else None for g, need in zip(grads, ctx.needs_input_grad[2:], strict=True)]
        return None, None, *once(grads, grad_out, x, *params)


# x (B, D, H, W); params are of each scale weight and bias of the depthwise and of the 1x1 convolution; weight and bias
# of the attention over scales; the position encoding; of each branch its convolutions, likewise, and its alpha; weight
# and bias of the last convolution. `branches` holds the numbers of convolutions
LGA = Whole("lga", lga, dense, ", int num_scales, int[] branches, int num_heads, bool released")
# x (B, C, H, W); params are weight and bias of each convolution, then of the projection
ACP = Whole("whole_acp", acp, dense, ", int pool_size")
# x (B, N, C); params are the scores' weight, then weight and bias of value and of out
CAT = Whole("whole_cat", cat, contiguous)
