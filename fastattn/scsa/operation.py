"""The registered operations `fastattn::{scsa,smsa,pcsa}_{forward,backward}`.

`params` is one flat list: the weights of the four convolutions, their four biases, weight and bias of norm_h
and of norm_w (SMSA), then weight and bias of norm, the weights of q, k and v, and their biases if there are
any (PCSA).

`saved` is what backward needs besides x and params: float32 (B, floats per sample, which the backend decides),
or (0,) where nothing is saved. Backward returns the parameters' gradients as one tensor, in the order of params.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.parameters import common_dtype, unflatten
from ..core.registry import Servers, dense, differentiate, once, register, watched
from . import native

_SERVERS = Servers("scsa.call", native=native)  # a backend's module: forward, backward and saved_size


class Operation:
    """One operation: its two registered operators, their fakes, and autograd around them."""

    def __init__(self, name: str, *, spatial: bool, channel: bool):
        self.name, self.spatial, self.channel = name, spatial, channel
        options = "int head_num, int window_size, str down_sample_mode, " * channel + "str gate_layer"
        self.forward_op = register(
            f"{name}_forward(Tensor x, Tensor[] params, {options}, ScalarType out_dtype, bool save, str backend) "
            "-> (Tensor out, Tensor saved)",
            self._forward,
            self._fake_forward,
        )
        self.backward_op = register(
            f"{name}_backward(Tensor grad_out, Tensor x, Tensor saved, Tensor[] params, {options}, "
            "bool need_x, bool need_params, str backend) -> (Tensor grad_x, Tensor grad_params)",
            self._backward,
            self._fake_backward,
        )

        differentiate(self.forward_op, self._gradients)

    def _gradients(self, grad_out, x, saved, params, rest, need_x: bool, need_params: bool):
        *options, _, _, backend = rest
        grad_x, flat = self.backward(grad_out, x, saved, params, tuple(options), need_x, need_params, backend)
        return grad_x, unflatten(flat, params) if need_params else params

    def __str__(self) -> str:
        return self.name

    def forward(self, x, params, options: tuple, out_dtype, save: bool, backend: str) -> tuple[Tensor, Tensor]:
        """Run forward on a dense x; return (out, saved)."""
        if watched(x, *params):
            return self.forward_op(x, params, *options, out_dtype, save, backend)
        return _SERVERS[backend].forward(self, x, params, options, out_dtype, save)

    def backward(self, grad_out, x, saved, params, options: tuple, need_x: bool, need_params: bool, backend: str):
        """Run backward on a dense x; return (grad_x, grad_params), empty where not needed."""
        if watched(grad_out, x, saved, *params):
            return self.backward_op(grad_out, x, saved, params, *options, need_x, need_params, backend)
        return self._backward(grad_out, x, saved, params, *options, need_x, need_params, backend)

    def _forward(self, x, params, *rest):
        *options, out_dtype, save, backend = rest
        return _SERVERS[backend].forward(self, dense(x), params, tuple(options), out_dtype, save)

    def _backward(self, grad_out, x, saved, params, *rest):
        *options, need_x, need_params, backend = rest
        x = dense(x)
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        grad_out = grad_out.contiguous(memory_format=layout)
        return _SERVERS[backend].backward(self, grad_out, x, saved, params, tuple(options), need_x, need_params)

    def _fake_forward(self, x, params, *rest):
        *options, out_dtype, save, backend = rest
        size = _SERVERS[backend].saved_size(self.spatial, self.channel, x.shape, tuple(options))
        saved = (x.shape[0], size) if save else (0,)
        return torch.empty_like(dense(x), dtype=out_dtype), x.new_empty(saved, dtype=torch.float32)

    def _fake_backward(self, grad_out, x, saved, params, *rest):
        *_, need_x, need_params, _ = rest
        grad_x = torch.empty_like(dense(x)) if need_x else x.new_empty(0)
        size = sum(p.numel() for p in params) if need_params else 0
        return grad_x, x.new_empty(size, dtype=common_dtype(x, params))

    def __call__(
        self, x: Tensor, params: Sequence[Tensor], options: tuple, out_dtype: torch.dtype, backend: str
    ) -> Tensor:
        """Run the operation on a backend, recording a graph only where a gradient is wanted."""
        if backend == "native":  # writes x's own dtype
            x = x.to(out_dtype)
        x = dense(x)
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
            return _Recorded.apply(self, options, out_dtype, backend, x, *params)
        return self.forward(x, params, options, out_dtype, False, backend)[0]


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators, which costs less than inside of them."""

    @staticmethod
    def forward(ctx, operation, options, out_dtype, backend, x, *params):
        out, saved = operation.forward(x, params, options, out_dtype, True, backend)
        ctx.operation, ctx.options, ctx.backend = operation, options, backend
        ctx.save_for_backward(x, saved, *params)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, saved, *params = ctx.saved_tensors
        need_x, *need_params = ctx.needs_input_grad[4:]
        grad_x, flat = ctx.operation.backward(
            grad_out, x, saved, params, ctx.options, need_x, any(need_params), ctx.backend
        )
        grads = [grad_x, *(unflatten(flat, params) if any(need_params) else params)]
        grads = [grad if need else None for grad, need in zip(grads, ctx.needs_input_grad[4:], strict=True)]
        grads = once(grads, grad_out, x, *params)
        return None, None, None, None, *grads


SCSA = Operation("scsa", spatial=True, channel=True)
SMSA = Operation("smsa", spatial=True, channel=False)
PCSA = Operation("pcsa", spatial=False, channel=True)
