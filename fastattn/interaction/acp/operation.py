"""Aggressive convolution pooling: the registered operators `fastattn::acp_{forward,backward}` (Triton), and the
composition of torch's operators that serves the CPU without the extension.

x is a map (B, C, H, W) or tokens (B, prefix + H * W, C), whose prefix passes by, and out lies as x does. With a
residual, x is added. Parameters are of one dtype: that of the levels, and of out but for the residual. `levels` and
`indices`, a byte for the place of each maximum in its window, are what backward needs besides x. It returns the
parameters' gradients as one tensor for each layer, weight and then bias, and one for the projection's weight and bias
each.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.reference import Affine
from ...core.registry import Servers, dense, once, register, watched
from ..reference import level_sizes

_SERVERS = Servers("acp.call")


def aggressive_conv_pooling(
    x: Tensor, size: tuple[int, int], convs: Sequence[Affine], proj: Affine, pool_size: int, residual: bool
) -> Tensor:
    """Aggregate x with its levels by Triton's kernels, recording a graph only where a gradient is wanted."""
    x = _laid(x)
    weights, biases = map(list, zip(*convs, strict=True))
    params = (*weights, *biases, *proj)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
        return _Recorded.apply(size, pool_size, residual, x, *params)
    return forward(x, *size, weights, biases, *proj, pool_size, residual, False)[0]


def _laid(x: Tensor) -> Tensor:
    """Return a map in one of both formats, tokens contiguous."""
    return dense(x) if x.dim() == 4 else x.contiguous()


def forward(x, height, width, weights, biases, proj_weight, proj_bias, pool_size, residual, save):
    """Return out, and levels and indices where they are to be saved."""
    run = FORWARD if watched(x, *weights, *biases, proj_weight, proj_bias) else _forward
    return run(x, height, width, weights, biases, proj_weight, proj_bias, pool_size, residual, save)


def _out_dtype(x: Tensor, weight: Tensor, residual: bool) -> torch.dtype:
    return torch.promote_types(x.dtype, weight.dtype) if residual else weight.dtype


def _forward(x, height, width, weights, biases, proj_weight, proj_bias, pool_size, residual, save):
    out, levels, indices = _SERVERS["triton"].forward(
        _laid(x), (height, width), weights, biases, proj_weight, proj_bias, pool_size, residual, save,
        _out_dtype(x, proj_weight, residual),
    )  # fmt: skip
    return (out, levels, indices) if save else (out, [], [])


def _backward(grad, x, height, width, levels, indices, weights, proj_weight, pool_size, residual, need_x, need_params):
    x = _laid(x)
    if x.dim() == 4:
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        grad = grad.contiguous(memory_format=layout)
    return _SERVERS["triton"].backward(
        grad.contiguous() if x.dim() == 3 else grad, x, (height, width), levels, indices, weights, proj_weight,
        pool_size, residual, need_x, need_params,
    )  # fmt: skip


def _fake_forward(x, height, width, weights, biases, proj_weight, proj_bias, pool_size, residual, save):
    x = _laid(x)
    out = torch.empty_like(x, dtype=_out_dtype(x, proj_weight, residual))
    batch, channels = x.shape[0], proj_weight.shape[0]
    layout = torch.contiguous_format if x.dim() == 4 and x.is_contiguous() else torch.channels_last
    sizes = level_sizes(height, width, len(weights), pool_size)[1:] if save else []
    levels = [
        torch.empty((batch, channels, *size), dtype=proj_weight.dtype, device=x.device, memory_format=layout)
        for size in sizes
    ]
    return out, levels, [torch.empty_like(level, dtype=torch.uint8) for level in levels]


def _fake_backward(
    grad, x, height, width, levels, indices, weights, proj_weight, pool_size, residual, need_x, need_params
):
    layers = [weight.new_empty(weight.numel() + weight.shape[0]) for weight in weights]
    proj = proj_weight.new_empty(proj_weight.shape), proj_weight.new_empty(proj_weight.shape[0])
    grads = [*layers, *proj] if need_params else []
    return torch.empty_like(_laid(x)) if need_x else x.new_empty(0), grads


_SIZE, _OPTIONS = "SymInt height, SymInt width", "int pool_size, bool residual"
FORWARD = register(
    f"acp_forward(Tensor x, {_SIZE}, Tensor[] weights, Tensor[] biases, Tensor proj_weight, Tensor proj_bias, "
    f"{_OPTIONS}, bool save) -> (Tensor out, Tensor[] levels, Tensor[] indices)",
    _forward,
    _fake_forward,
)
BACKWARD = register(
    f"acp_backward(Tensor grad, Tensor x, {_SIZE}, Tensor[] levels, Tensor[] indices, Tensor[] weights, "
    f"Tensor proj_weight, {_OPTIONS}, bool need_x, bool need_params) -> (Tensor grad_x, Tensor[] grad_params)",
    _backward,
    _fake_backward,
)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, size, pool_size, residual, x, *params):
        count = len(params) // 2 - 1
        weights, biases, (proj_weight, proj_bias) = params[:count], params[count:-2], params[-2:]
        options = pool_size, residual
        out, levels, indices = forward(x, *size, list(weights), list(biases), proj_weight, proj_bias, *options, True)
        ctx.size, ctx.options = size, options
        ctx.save_for_backward(x, proj_weight, *weights, *levels, *indices)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, proj_weight, *rest = ctx.saved_tensors
        count = len(rest) // 3
        weights, levels, indices = (rest[i * count : (i + 1) * count] for i in range(3))
        need_x, *needs = ctx.needs_input_grad[3:]
        run = BACKWARD if watched(grad, x, *weights, proj_weight) else _backward
        grad_x, grads = run(grad, x, *ctx.size, levels, indices, weights, proj_weight, *ctx.options, need_x, any(needs))
        found = [grad_x, *(_by_parameter(grads, weights) if grads else [None] * len(needs))]
        found = [g if need else None for g, need in zip(found, (need_x, *needs), strict=True)]
        return None, None, None, *once(found, grad, x, proj_weight, *weights)


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
