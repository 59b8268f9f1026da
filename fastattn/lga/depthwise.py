"""Several depthwise convolutions of one map: the registered operators `fastattn::depthwise_{forward,backward}`
(Triton).

weights are (D, 1, k, k) with odd k, biases (D); the outputs (B, D, ceil(H / stride), ceil(W / stride)) have x's memory
format. Backward returns the gradients of all weights, then of all biases, as one tensor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import reference
from ..core.operation import Operation, Servers
from ..core.parameters import unflatten
from ..core.reference import Affine
from ..core.tensors import dense, layout

_SERVERS = Servers("common.depthwise")


def depthwise_convolutions(x: Tensor, affines: Sequence[Affine], strides: Sequence[int]) -> list[Tensor]:
    """Return each convolution of x (B, D, H, W), recording a graph only where a gradient is wanted."""
    weights, biases = zip(*affines, strict=True)
    return list(_DEPTHWISE.call(tuple(strides), dense(x), *weights, *biases))


class _Depthwise(Operation):
    forward_schema = "(Tensor x, Tensor[] weights, Tensor[] biases, int[] strides) -> Tensor[]"
    backward_schema = (
        "(Tensor[] grads, Tensor x, Tensor[] weights, int[] strides, bool need_x, bool need_params) "
        "-> (Tensor grad_x, Tensor grad_params)"
    )

    def outputs(self, options, inputs, save):
        x, *params = inputs
        count = len(options)
        return tuple(self.run(inputs, x, params[:count], params[count:], options)), inputs

    def gradients(self, options, kept, grads, needs):
        (x, *params), (need_x, *need) = kept, needs
        weights = params[: len(options)]
        grad_x, flat = self.run_backward((x, *params, *grads), [*grads], x, weights, options, need_x, any(need))
        return [grad_x, *(unflatten(flat, params) if any(need) else params)]

    def forward(self, x, weights, biases, strides):
        return _SERVERS["triton"].forward(dense(x), weights, biases, strides)

    def backward(self, grads, x, weights, strides, need_x, need_params):
        x = dense(x)
        grads = [grad.contiguous(memory_format=layout(x)) for grad in grads]
        return _SERVERS["triton"].backward(grads, x, weights, strides, need_x, need_params)

    def fake_forward(self, x, weights, biases, strides):
        batch, dim, height, width = x.shape
        shapes = [(batch, dim, -(-height // stride), -(-width // stride)) for stride in strides]
        like = {"dtype": x.dtype, "device": x.device, "memory_format": layout(dense(x))}
        return [torch.empty(shape, **like) for shape in shapes]

    def fake_backward(self, grads, x, weights, strides, need_x, need_params):
        size = sum(weight.numel() + weight.shape[0] for weight in weights) if need_params else 0
        return torch.empty_like(dense(x)) if need_x else x.new_empty(0), weights[0].new_empty(size)

    def definition(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        strides: Sequence[int],
        biases: Sequence[Tensor | None] | None = None,
        **_: Any,
    ) -> list[Tensor]:
        """Biases count nothing, and backward has none."""
        affines = zip(weights, biases or [None] * len(weights), strict=True)
        return [reference.depthwise(x, affine, stride) for affine, stride in zip(affines, strides, strict=True)]


_DEPTHWISE = _Depthwise("depthwise")
