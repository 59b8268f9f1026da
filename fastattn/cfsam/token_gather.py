"""The token gather: flatten + concatenate (+ add) (+ resize) + LayerNorm. The registered operators
`fastattn::token_gather_{forward,backward}` (Triton), and the composition of torch's operators that serves the CPU.

Sources are maps (B, D, H, W), or tokens (B, N, D), which the operators take as maps (B, D, N, 1) in channels_last; they
are concatenated along the tokens. `addend` (B, N, D) is added, `length` is the number of tokens that they are resized
to. `statistics` (B, length, 2) float32 are mean and 1 / standard deviation. Backward returns the gradients of weight
and bias as one tensor; an addend beside a single source has that one's gradient.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.parameters import unflatten
from ..core.reference import Affine
from ..core.registry import Servers, dense, once, register, watched
from .reference import EPSILON, resize

_SERVERS = Servers("cfsam.token_gather")


def token_gather(
    sources: Sequence[Tensor], addend: Tensor | None, norm: Affine | None, length: int, backend: str
) -> tuple[Tensor, Tensor]:
    """Return tokens and normed tokens (B, length, D), without a norm the tokens twice.

    With an addend there is one source. A graph is recorded only where a gradient is wanted.
    """
    resizes = length != count_tokens(sources)
    if backend == "native" or not (norm or resizes):
        return compose(sources, addend, norm, length)
    weight, bias = norm or (None, None)
    maps = [dense(x if x.dim() == 4 else x.contiguous().mT.unsqueeze(3)) for x in sources]
    addend = None if addend is None else addend.contiguous()
    inputs = (addend, weight, bias, *maps)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        tokens, normed = _Recorded.apply(length, *inputs)
    else:
        tokens, normed, _ = forward(maps, addend, weight, bias, length)
    return tokens, normed if norm else tokens


def count_tokens(sources: Sequence[Tensor]) -> int:
    """Return how many tokens all sources have."""
    return sum(x.shape[2] * x.shape[3] if x.dim() == 4 else x.shape[1] for x in sources)


def compose(sources: Sequence[Tensor], addend: Tensor | None, norm: Affine | None, length: int):
    """Do it by torch's own operators."""
    tokens = [x.flatten(2).mT if x.dim() == 4 else x for x in sources]
    y = torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]
    y = resize(y if addend is None else y + addend, length)
    return y, F.layer_norm(y, y.shape[-1:], *norm, EPSILON) if norm else y


def forward(maps, addend, weight, bias, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, normed tokens and their statistics, the last two empty without a norm."""
    return (FORWARD if watched(maps[0]) else _forward)(maps, addend, weight, bias, length, EPSILON)


def _forward(maps, addend, weight, bias, length, eps):
    return _SERVERS["triton"].forward([dense(x) for x in maps], addend, weight, bias, length, eps)


def _backward(grad_tokens, grad_normed, tokens, statistics, weight, heights, widths, channels_last, need_params):
    grad_tokens, grad_normed = (g if g is None else g.contiguous() for g in (grad_tokens, grad_normed))
    grads = _empty_maps(grad_tokens if grad_normed is None else grad_normed, heights, widths, channels_last)
    return grads, _SERVERS["triton"].backward(grad_tokens, grad_normed, tokens, statistics, weight, grads, need_params)


def _empty_maps(given: Tensor, heights, widths, channels_last) -> list[Tensor]:
    """Return maps for the tokens of a gradient (B, length, D)."""
    batch, _, dim = given.shape
    formats = [torch.channels_last if last else torch.contiguous_format for last in channels_last]
    return [
        torch.empty((batch, dim, height, width), dtype=given.dtype, device=given.device, memory_format=layout)
        for height, width, layout in zip(heights, widths, formats, strict=True)
    ]


def _fake_forward(maps, addend, weight, bias, length, eps):
    x = maps[0]
    tokens = x.new_empty((x.shape[0], length, x.shape[1]))
    if weight is None:
        return tokens, x.new_empty(0), x.new_empty(0, dtype=torch.float32)
    return tokens, torch.empty_like(tokens), x.new_empty((x.shape[0], length, 2), dtype=torch.float32)


def _fake_backward(grad_tokens, grad_normed, tokens, statistics, weight, heights, widths, channels_last, need_params):
    given = grad_tokens if grad_normed is None else grad_normed
    grads = _empty_maps(given, heights, widths, channels_last)
    dtype = given.dtype if weight is None else weight.dtype
    return grads, given.new_empty(2 * given.shape[2] if need_params else 0, dtype=dtype)


FORWARD = register(
    "token_gather_forward(Tensor[] maps, Tensor? addend, Tensor? weight, Tensor? bias, SymInt length, float eps) "
    "-> (Tensor tokens, Tensor normed, Tensor statistics)",
    _forward,
    _fake_forward,
)
BACKWARD = register(
    "token_gather_backward(Tensor? grad_tokens, Tensor? grad_normed, Tensor? tokens, Tensor? statistics, "
    "Tensor? weight, SymInt[] heights, SymInt[] widths, bool[] channels_last, bool need_params) "
    "-> (Tensor[] grad_maps, Tensor grad_params)",
    _backward,
    _fake_backward,
)


class _Recorded(torch.autograd.Function):
    """Autograd around the registered operators."""

    @staticmethod
    def forward(ctx, length, addend, weight, bias, *maps):
        tokens, normed, statistics = forward(maps, addend, weight, bias, length)
        ctx.set_materialize_grads(False)
        ctx.layouts = [x.shape[2] for x in maps], [x.shape[3] for x in maps], [not x.is_contiguous() for x in maps]
        if weight is None:
            ctx.mark_non_differentiable(normed)
            ctx.save_for_backward(None, None, None, None)
        else:
            ctx.save_for_backward(tokens, statistics, weight, bias)
        return tokens, normed

    @staticmethod
    def backward(ctx, grad_tokens, grad_normed):
        tokens, statistics, weight, bias = saved = ctx.saved_tensors
        if weight is None or grad_normed is None:  # no norm, or its result is not used
            tokens = statistics = weight = grad_normed = None
        given = grad_tokens if grad_normed is None else grad_normed
        if given is None:
            return (None,) * (4 + len(ctx.layouts[0]))
        needs = ctx.needs_input_grad
        need_params = weight is not None and (needs[2] or needs[3])
        run = BACKWARD if watched(given) else _backward
        grads, flat = run(grad_tokens, grad_normed, tokens, statistics, weight, *ctx.layouts, need_params)
        grad_weight, grad_bias = unflatten(flat, (weight, bias)) if need_params else (None, None)
        grad_addend = grads[0].flatten(2).mT if needs[1] else None
        wanted = [grad_addend, grad_weight, grad_bias, *grads]
        wanted = [g if need else None for g, need in zip(wanted, needs[1:], strict=True)]
        return None, *once(wanted, given, *(t for t in saved if t is not None))
