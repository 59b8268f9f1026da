"""The token gather: flatten + concatenate (+ add) (+ resize) + LayerNorm. The registered operators
`fastattn::token_gather_{forward,backward}` (Triton), and the composition of torch's operators that serves the CPU.

Sources are maps (B, D, H, W), or tokens (B, N, D), which the operators take as maps (B, D, N, 1) in channels_last; they
are concatenated along the tokens. `addend` (B, N, D) is added, `length` is the number of tokens that they are resized
to. `statistics` (B, length, 2) float32 are mean and 1 / standard deviation. Backward returns the gradients of weight
and bias as one tensor; an addend beside a single source has that one's gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.operation import Operation, Servers
from ..core.parameters import unflatten
from ..core.reference import Affine
from ..core.tensors import dense
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
    maps = [dense(x if x.dim() == 4 else x.contiguous().mT.unsqueeze(3)) for x in sources]
    addend = None if addend is None else addend.contiguous()
    layouts = [x.shape[2] for x in maps], [x.shape[3] for x in maps], [not x.is_contiguous() for x in maps]
    tokens, *normed = _TOKEN_GATHER.call((length, *layouts), addend, *(norm or (None, None)), *maps)
    return tokens, *(normed or [tokens])


def count_tokens(sources: Sequence[Tensor]) -> int:
    """Return how many tokens all sources have."""
    return sum(x.shape[2] * x.shape[3] if x.dim() == 4 else x.shape[1] for x in sources)


def compose(sources: Sequence[Tensor], addend: Tensor | None, norm: Affine | None, length: int):
    """Do it by torch's own operators."""
    tokens = [x.flatten(2).mT if x.dim() == 4 else x for x in sources]
    y = torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]
    y = resize(y if addend is None else y + addend, length)
    return y, F.layer_norm(y, y.shape[-1:], *norm, EPSILON) if norm else y


def _empty_maps(given: Tensor, heights, widths, channels_last) -> list[Tensor]:
    """Return maps for the tokens of a gradient (B, length, D)."""
    batch, _, dim = given.shape
    formats = [torch.channels_last if last else torch.contiguous_format for last in channels_last]
    return [
        torch.empty((batch, dim, height, width), dtype=given.dtype, device=given.device, memory_format=layout)
        for height, width, layout in zip(heights, widths, formats, strict=True)
    ]


class _TokenGather(Operation):
    forward_schema = (
        "(Tensor[] maps, Tensor? addend, Tensor? weight, Tensor? bias, SymInt length, float eps) "
        "-> (Tensor tokens, Tensor normed, Tensor statistics)"
    )
    backward_schema = (
        "(Tensor? grad_tokens, Tensor? grad_normed, Tensor? tokens, Tensor? statistics, Tensor? weight, "
        "SymInt[] heights, SymInt[] widths, bool[] channels_last, bool need_params) "
        "-> (Tensor[] grad_maps, Tensor grad_params)"
    )
    materializes = False

    def outputs(self, options, inputs, save):
        addend, weight, bias, *maps = inputs
        tokens, normed, statistics = self.run(maps, maps, addend, weight, bias, options[0], EPSILON)
        if weight is None:
            return (tokens,), ()
        return (tokens, normed), (tokens, statistics, weight, bias)

    def gradients(self, options, kept, grads, needs):
        _, *layouts = options
        grad_tokens, grad_normed = (*grads, None)[:2]
        affine: list[Any]
        tokens, statistics, *affine = kept if grad_normed is not None else (None, None, None)
        given = grad_tokens if grad_normed is None else grad_normed
        if given is None:
            return [None] * len(needs)
        need_params = grad_normed is not None and (needs[1] or needs[2])
        maps, flat = self.run_backward(
            (given,), grad_tokens, grad_normed, tokens, statistics, affine[0], *layouts, need_params
        )
        return [
            maps[0].flatten(2).mT if needs[0] else None,
            *(unflatten(flat, affine) if need_params else (None, None)),
            *maps,
        ]

    def forward(self, maps, addend, weight, bias, length, eps):
        return _SERVERS["triton"].forward([dense(x) for x in maps], addend, weight, bias, length, eps)

    def backward(
        self, grad_tokens, grad_normed, tokens, statistics, weight, heights, widths, channels_last, need_params
    ):
        grad_tokens, grad_normed = (g if g is None else g.contiguous() for g in (grad_tokens, grad_normed))
        given = grad_tokens if grad_normed is None else grad_normed
        maps = _empty_maps(given, heights, widths, channels_last)
        flat = _SERVERS["triton"].backward(grad_tokens, grad_normed, tokens, statistics, weight, maps, need_params)
        return maps, flat

    def fake_forward(self, maps, addend, weight, bias, length, eps):
        x = maps[0]
        tokens = x.new_empty((x.shape[0], length, x.shape[1]))
        if weight is None:
            return tokens, x.new_empty(0), x.new_empty(0, dtype=torch.float32)
        return tokens, torch.empty_like(tokens), x.new_empty((x.shape[0], length, 2), dtype=torch.float32)

    def fake_backward(
        self, grad_tokens, grad_normed, tokens, statistics, weight, heights, widths, channels_last, need_params
    ):
        given = grad_tokens if grad_normed is None else grad_normed
        maps = _empty_maps(given, heights, widths, channels_last)
        dtype = given.dtype if weight is None else weight.dtype
        return maps, given.new_empty(2 * given.shape[2] if need_params else 0, dtype=dtype)

    def definition(
        self,
        maps: Sequence[Tensor] = (),
        addend: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        length: int = 0,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        """It counts nothing: of backward, which has no maps, there is nothing to count."""
        if not maps:
            return ()
        tokens, normed = compose(maps, addend, None if weight is None else (weight, bias), length)
        return (tokens,) if weight is None else (tokens, normed)


_TOKEN_GATHER = _TokenGather("token_gather")
