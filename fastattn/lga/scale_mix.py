"""LGA's mixture of scales: the registered operators `fastattn::scale_mix_{forward,backward}` (Triton).

z = x + sum over i of a_i * upsample(coarse_i) + position encoding, with a = softmax(conv1x1(x)) of one more entry than
there are coarse maps: the first is x's own, and drops out. `shares` (B, scales + 1, H, W) float32 is a. Backward
returns the gradients of weight, bias and position encoding as one tensor.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.operation import Operation, Servers
from ..core.parameters import unflatten
from ..core.reference import Affine, resize_nearest
from ..core.tensors import dense, layout

_SERVERS = Servers("lga.scale_mix")


def mix_scales(x: Tensor, coarse: Sequence[Tensor], weights: Affine, position_encoding: Tensor) -> Tensor:
    """Return z (B, D, H, W), recording a graph only where a gradient is wanted."""
    x = dense(x)
    coarse = [t.contiguous(memory_format=layout(x)) for t in coarse]
    weight, bias = weights
    assert bias is not None  # the module's convolution always has one
    encoding = position_encoding.to(weight.dtype).contiguous()
    return _SCALE_MIX.call((), x, weight, bias.to(weight.dtype), encoding, *coarse)


class _ScaleMix(Operation):
    forward_schema = (
        "(Tensor x, Tensor[] coarse, Tensor weight, Tensor bias, Tensor position_encoding) -> (Tensor z, Tensor shares)"
    )
    backward_schema = (
        "(Tensor grad_z, Tensor x, Tensor[] coarse, Tensor shares, Tensor weight, Tensor position_encoding, "
        "bool need_params) -> (Tensor grad_x, Tensor[] grad_coarse, Tensor grad_params)"
    )

    def outputs(self, options, inputs, save):
        x, weight, bias, encoding, *coarse = inputs
        z, shares = self.run(inputs, x, coarse, weight, bias, encoding)
        return z, (x, shares, weight, bias, encoding, *coarse)

    def gradients(self, options, kept, grads, needs):
        (grad_z,), (x, shares, *params), need_params = grads, kept, any(needs[1:4])
        weight, bias, encoding, *coarse = params
        grad_x, grad_coarse, flat = self.run_backward(
            (grad_z, x, *params), grad_z, x, coarse, shares, weight, encoding, need_params
        )
        found = weight, bias, encoding
        return [grad_x, *(unflatten(flat, found) if need_params else found), *grad_coarse]

    def forward(self, x, coarse, weight, bias, position_encoding):
        return _SERVERS["triton"].forward(dense(x), coarse, weight, bias, position_encoding)

    def backward(self, grad_z, x, coarse, shares, weight, position_encoding, need_params):
        grad_z = grad_z.contiguous(memory_format=layout(x))
        return _SERVERS["triton"].backward(grad_z, x, coarse, shares, weight, position_encoding, need_params)

    def fake_forward(self, x, coarse, weight, bias, position_encoding):
        batch, _, height, width = x.shape
        shares = x.new_empty((batch, len(coarse) + 1, height, width), dtype=torch.float32)
        return torch.empty_like(dense(x)), shares

    def fake_backward(self, grad_z, x, coarse, shares, weight, position_encoding, need_params):
        size = weight.numel() + weight.shape[0] + position_encoding.numel() if need_params else 0
        return torch.empty_like(x), [torch.empty_like(t) for t in coarse], weight.new_empty(size)

    def definition(
        self,
        x: Tensor,
        coarse: Sequence[Tensor],
        weight: Tensor,
        position_encoding: Tensor,
        bias: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The bias counts nothing, and backward has none."""
        size = x.shape[2:]
        _, *shares = F.conv2d(x, weight, bias).softmax(dim=1).split(1, dim=1)
        changes = [share * resize_nearest(maps, *size) for share, maps in zip(shares, coarse, strict=True)]
        return sum(changes, start=x) + resize_nearest(position_encoding, *size)


_SCALE_MIX = _ScaleMix("scale_mix")
