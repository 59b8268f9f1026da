"""Aggressive convolution pooling: the registered operators `fastattn::whole_acp_{forward,backward}` (the extension) and
`fastattn::acp_{forward,backward}` (Triton), and the composition of torch's operators that serves the CPU without the
extension.

x is a map (B, C, H, W) or, for Triton, tokens (B, prefix + H * W, C), whose prefix passes by, and out lies as x does.
With a residual, x is added. Parameters are of one dtype: that of the levels, and of out but for the residual. `levels`
and `indices`, a byte for the place of each maximum in its window, are what Triton's backward needs besides x. It
returns the parameters' gradients as one tensor for each layer, weight and then bias, and one for the projection's
weight and bias each.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.operation import FlatOperation, Operation, Servers
from ...core.reference import Affine
from ...core.tensors import dense, layout
from .. import reference
from ..reference import level_sizes
from . import native

_SERVERS = Servers("acp.call")


class _Whole(FlatOperation):
    """x (B, C, H, W); params are weight and bias of each convolution, then of the projection; nothing is saved."""

    server = native

    def definition(self, x: Tensor, params: Sequence[Tensor], pool_size: int, **_: Any) -> Tensor:
        *convs, proj = zip(params[::2], params[1::2], strict=True)
        return _define(x, convs, proj, pool_size)


ACP = _Whole("whole_acp", ", int pool_size")


def aggressive_conv_pooling(
    x: Tensor, size: tuple[int, int], convs: Sequence[Affine], proj: Affine, pool_size: int, residual: bool
) -> Tensor:
    """Aggregate x with its levels by Triton's kernels, recording a graph only where a gradient is wanted."""
    weights, biases = zip(*convs, strict=True)
    return _ON_TRITON.call((*size, pool_size, residual), _laid(x), *weights, *biases, *proj)


def _laid(x: Tensor) -> Tensor:
    """Return a map in one of both formats, tokens contiguous."""
    return dense(x) if x.dim() == 4 else x.contiguous()


class _OnTriton(Operation):
    forward_schema = (
        "(Tensor x, SymInt height, SymInt width, Tensor[] weights, Tensor[] biases, Tensor proj_weight, "
        "Tensor proj_bias, int pool_size, bool residual, bool save) "
        "-> (Tensor out, Tensor[] levels, Tensor[] indices)"
    )
    backward_schema = (
        "(Tensor grad, Tensor x, SymInt height, SymInt width, Tensor[] levels, Tensor[] indices, Tensor[] weights, "
        "Tensor proj_weight, int pool_size, bool residual, bool need_x, bool need_params) "
        "-> (Tensor grad_x, Tensor[] grad_params)"
    )

    def outputs(self, options, inputs, save):
        height, width, *rest = options
        x, *params, proj_weight, proj_bias = inputs
        count = len(params) // 2
        weights, biases = params[:count], params[count:]
        out, levels, indices = self.run(inputs, x, height, width, weights, biases, proj_weight, proj_bias, *rest, save)
        return out, (x, proj_weight, *weights, *levels, *indices)

    def gradients(self, options, kept, grads, needs):
        height, width, *rest = options
        (grad,), (x, proj_weight, *others), (need_x, *need) = grads, kept, needs
        count = len(others) // 3
        weights, levels, indices = (others[i * count : (i + 1) * count] for i in range(3))
        grad_x, flat = self.run_backward(
            (grad, x, *weights, proj_weight),
            *(grad, x, height, width, levels, indices, weights, proj_weight, *rest, need_x, any(need)),
        )
        return [grad_x, *(_by_parameter(flat, weights) if flat else [None] * len(need))]

    def forward(self, x, height, width, weights, biases, proj_weight, proj_bias, pool_size, residual, save):
        out, levels, indices = _SERVERS["triton"].forward(
            _laid(x), (height, width), weights, biases, proj_weight, proj_bias, pool_size, residual, save,
            _out_dtype(x, proj_weight, residual),
        )  # fmt: skip
        return (out, levels, indices) if save else (out, [], [])

    def backward(
        self, grad, x, height, width, levels, indices, weights, proj_weight, pool_size, residual, need_x, need_params
    ):
        x = _laid(x)
        return _SERVERS["triton"].backward(
            grad.contiguous(memory_format=layout(x)), x, (height, width), levels, indices, weights, proj_weight,
            pool_size, residual, need_x, need_params,
        )  # fmt: skip

    def fake_forward(self, x, height, width, weights, biases, proj_weight, proj_bias, pool_size, residual, save):
        x = _laid(x)
        out = torch.empty_like(x, dtype=_out_dtype(x, proj_weight, residual))
        batch, channels = x.shape[0], proj_weight.shape[0]
        own = torch.contiguous_format if x.dim() == 4 and x.is_contiguous() else torch.channels_last
        like = {"dtype": proj_weight.dtype, "device": x.device, "memory_format": own}
        sizes = level_sizes(height, width, len(weights), pool_size)[1:] if save else []
        levels = [torch.empty((batch, channels, *size), **like) for size in sizes]
        return out, levels, [torch.empty_like(level, dtype=torch.uint8) for level in levels]

    def fake_backward(
        self, grad, x, height, width, levels, indices, weights, proj_weight, pool_size, residual, need_x, need_params
    ):
        layers = [weight.new_empty(weight.numel() + weight.shape[0]) for weight in weights]
        proj = proj_weight.new_empty(proj_weight.shape), proj_weight.new_empty(proj_weight.shape[0])
        flat = [*layers, *proj] if need_params else []
        return torch.empty_like(_laid(x)) if need_x else x.new_empty(0), flat

    def definition(
        self,
        x: Tensor,
        height: int,
        width: int,
        weights: Sequence[Tensor],
        proj_weight: Tensor,
        pool_size: int,
        residual: bool,
        biases: Sequence[Tensor | None] | None = None,
        proj_bias: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Biases count nothing, and backward has none."""
        convs, proj = zip(weights, biases or [None] * len(weights), strict=True), (proj_weight, proj_bias)
        dtype = proj_weight.dtype
        if x.dim() == 4:
            out = _define(x.to(dtype), convs, proj, pool_size)
            return x + out if residual else out
        prefix, grid = x.split([x.shape[1] - height * width, height * width], dim=1)  # the last tokens are the map's
        out = _define(grid.to(dtype).mT.unflatten(2, (height, width)), convs, proj, pool_size).flatten(2).mT
        out = grid + out if residual else out
        return torch.cat([prefix.to(out.dtype), out], dim=1)


_ON_TRITON = _OnTriton("acp")


def _out_dtype(x: Tensor, weight: Tensor, residual: bool) -> torch.dtype:
    return torch.promote_types(x.dtype, weight.dtype) if residual else weight.dtype


def _define(x: Tensor, convs: Iterable[Affine], proj: Affine, pool_size: int) -> Tensor:
    aggregate = "sum" if proj[0].shape[0] == proj[0].shape[1] else "concat"
    return reference.aggressive_conv_pooling(x, [*convs], proj, pool_size=pool_size, aggregate=aggregate)


def _by_parameter(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the weights, the biases, and the projection's weight and bias."""
    *layers, d_proj, d_bias = grads
    pairs = [flat.split([w.numel(), w.shape[0]]) for flat, w in zip(layers, weights, strict=True)]
    kernels = [kernel.view(w.shape) for (kernel, _), w in zip(pairs, weights, strict=True)]
    return [*kernels, *(offset for _, offset in pairs), d_proj, d_bias]


def compose(x: Tensor, convs: Sequence[Affine], proj: Affine, pool_size: int) -> Tensor:
    """Do it by torch's own operators, in channels_last: they pool that many times faster than NCHW."""
    x = dense(x)
    transposed = not x.is_contiguous(memory_format=torch.channels_last)
    if transposed:
        x = _ToFormat.apply(x, torch.channels_last)
    levels = [x]
    for weight, bias in convs:
        x = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=x.shape[1])
        x = F.max_pool2d(x, pool_size, pool_size, ceil_mode=True)
        levels.append(x)
    levels = [level.permute(0, 2, 3, 1) for level in levels]  # [B, H_l, W_l, C]
    weight, bias = proj[0].flatten(1), proj[1]
    if weight.shape[1] == weight.shape[0]:
        out = F.linear(_resized_sum(levels), weight, bias)
    else:  # the bias joins the smallest level: it costs a pass there
        biases = [None] * len(convs) + [bias]
        matrices = weight.chunk(len(levels), dim=1)
        out = _resized_sum([F.linear(*each) for each in zip(levels, matrices, biases, strict=True)])
    out = out.permute(0, 3, 1, 2)
    return _ToFormat.apply(out, torch.contiguous_format) if transposed else out


def _resized_sum(maps: list[Tensor]) -> Tensor:
    """Return the sum of maps (B, H_l, W_l, C), each resized to the first one's size.

    Where that is the same, a map goes first into the one before it.
    """
    for i in range(len(maps) - 1, 0, -1):
        nests = _divides(maps[i], maps[i - 1]) and _divides(maps[i - 1], maps[0])
        maps[i - 1 if nests else 0] = _AddResized.apply(maps[i - 1 if nests else 0], maps[i])
    return maps[0]


def _divides(small: Tensor, large: Tensor) -> bool:
    """Return whether both sides of a map (B, h, w, C) divide those of another."""
    return large.shape[1] % small.shape[1] == 0 and large.shape[2] % small.shape[2] == 0


class _ToFormat(torch.autograd.Function):
    """Copy a map (B, C, H, W) to a memory format, and its gradient back to the map's own."""

    @staticmethod
    def forward(ctx, x, memory_format):
        ctx.own = torch.contiguous_format if memory_format is torch.channels_last else torch.channels_last
        return x.contiguous(memory_format=memory_format)

    @staticmethod
    def backward(ctx, grad):
        return grad.contiguous(memory_format=ctx.own), None


class _AddResized(torch.autograd.Function):
    """Add to maps (B, H, W, C) others (B, h, w, C), resized by the integer rule."""

    @staticmethod
    def forward(ctx, maps, others):
        (height, width), (h, w) = ctx.sizes = maps.shape[1:3], others.shape[1:3]
        if _divides(others, maps):
            blocks = maps.unflatten(2, (w, width // w)).unflatten(1, (h, height // h))
            return (blocks + others[:, :, None, :, None]).view(maps.shape)
        rows, columns = (_sources(*pair, maps.device) for pair in ((h, height), (w, width)))
        return others.index_select(2, columns).index_select(1, rows).add_(maps)

    @staticmethod
    def backward(ctx, grad):
        (height, width), (h, w) = ctx.sizes
        # what each source pixel is given sums up: products with matrices of zeros and ones
        rows = torch.zeros(h, height, dtype=grad.dtype, device=grad.device)
        rows[_sources(h, height, grad.device), torch.arange(height, device=grad.device)] = 1
        columns = torch.zeros(w, width, dtype=grad.dtype, device=grad.device)
        columns[_sources(w, width, grad.device), torch.arange(width, device=grad.device)] = 1
        return grad, columns @ (rows @ grad.flatten(2)).unflatten(2, (width, -1))


def _sources(size: int, resized: int, device: torch.device) -> Tensor:
    """Return the source of each place of a resized axis."""
    return torch.arange(resized, device=device) * size // resized
