"""Conceptual attention: the registered operators `fastattn::whole_cat_{forward,backward}` (the extension) and
`fastattn::cat_{forward,backward}` (Triton), and the composition of torch's operators that serves the CPU without the
extension, all by the algebra of `fastattn.interaction.reference`.

x is (B, N, C), score (K, C); value and out, (C, C), have biases. The parameters are of one dtype, out of x's or theirs,
whichever is wider. Triton's backward needs besides x the logarithms of the softmax over K (B, N) and over N (B, K), in
base 2, and the tokens' means (B, K, C), all float32; the concept tokens and what they give back, without the bias,
(B, K, C).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.operation import FlatOperation, Operation, Servers, once
from ...core.tensors import contiguous
from .. import reference
from . import native

_SERVERS = Servers("cat.call")


class _Whole(FlatOperation):
    """x (B, N, C); params are the scores' weight, then weight and bias of value and of out. Saved are both softmaxes'
    greatest scores and inverse sums, the tokens' means, concept tokens and what these give back: nothing of N x K."""

    server = native

    def definition(self, x: Tensor, params: Sequence[Tensor], **_: Any) -> Tensor:
        score, value, value_bias, out, out_bias = params
        return reference.conceptual_attention(x, score, (value, value_bias), (out, out_bias))


CAT = _Whole("whole_cat", lay=contiguous)


def conceptual_attention(x: Tensor, params: tuple[Tensor, ...]) -> Tensor:
    """Align tokens with concepts by Triton's kernels, recording a graph only where a gradient is wanted.

    params are score, value's weight and bias, out's weight and bias.
    """
    return _ON_TRITON.call((), x.contiguous(), *params)


_SAVED = "Tensor logs_n, Tensor logs_k, Tensor means, Tensor concepts, Tensor values"


class _OnTriton(Operation):
    forward_schema = (
        "(Tensor x, Tensor score, Tensor value, Tensor value_bias, Tensor out, Tensor out_bias, bool save) "
        f"-> (Tensor result, {_SAVED})"
    )
    backward_schema = (
        f"(Tensor grad, Tensor x, Tensor score, Tensor value, Tensor out, {_SAVED}) -> (Tensor grad_x, "
        "Tensor grad_score, Tensor grad_value, Tensor grad_value_bias, Tensor grad_out, Tensor grad_out_bias)"
    )

    def outputs(self, options, inputs, save):
        result, *saved = self.run(inputs, *inputs, save)
        x, score, value, _, out, _ = inputs
        return result, (x, score, value, out, *saved)

    def gradients(self, options, kept, grads, needs):
        tensors = (*grads, *kept)
        return self.run_backward(tensors, *tensors)

    def forward(self, x, score, value, value_bias, out, out_bias, save):
        dtype = torch.promote_types(x.dtype, score.dtype)
        params = (p.contiguous() for p in (score, value, value_bias, out, out_bias))
        return _SERVERS["triton"].forward(x.contiguous(), *params, save, dtype)

    def backward(self, grad, x, score, value, out, logs_n, logs_k, means, concepts, values):
        score, value, out = (p.contiguous() for p in (score, value, out))
        return _SERVERS["triton"].backward(
            grad.contiguous(), x.contiguous(), score, value, out, logs_n, logs_k, means, concepts, values
        )

    def fake_forward(self, x, score, value, value_bias, out, out_bias, save):
        (batch, tokens, channels), concepts = x.shape, score.shape[0]
        result = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, score.dtype))
        logs_n = x.new_empty((batch, tokens) if save else 0, dtype=torch.float32)
        logs_k = x.new_empty((batch, concepts), dtype=torch.float32)
        means = x.new_empty((batch, concepts, channels), dtype=torch.float32)
        return result, logs_n, logs_k, means, score.new_empty(means.shape), score.new_empty(means.shape)

    def fake_backward(self, grad, x, score, value, out, logs_n, logs_k, means, concepts, values):
        bias = score.new_empty(value.shape[0])
        return x.new_empty(x.shape), *(p.new_empty(p.shape) for p in (score, value, bias, out, bias))

    def definition(
        self,
        x: Tensor,
        score: Tensor,
        value: Tensor,
        out: Tensor,
        value_bias: Tensor | None = None,
        out_bias: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Biases count nothing, and backward has none."""
        own = x.to(score.dtype)
        change = reference.conceptual_attention(own, score, (value, value_bias), (out, out_bias)) - own
        return x + change


_ON_TRITON = _OnTriton("cat")


def compose(x: Tensor, params: tuple[Tensor, ...]) -> Tensor:
    """Do it by torch's own operators; params are score, value's weight and bias, out's weight and bias."""
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params)):
        return _Composed.apply(x, *params)
    return _compose(x, *params)[0]


def _compose(x, score, value, value_bias, out, out_bias) -> tuple[Tensor, ...]:
    """Return out, both attentions, the tokens' means, concept tokens and what these give back, without the bias."""
    scores = F.linear(x, score)  # [B, N, K]
    forth, back = scores.softmax(dim=1), scores.softmax(dim=2)
    means = forth.mT @ x  # [B, K, C]
    concepts = F.linear(means, value, value_bias)
    values = F.linear(concepts, out)
    return torch.baddbmm(x, back, values + out_bias), forth, back, means, concepts, values


class _Composed(torch.autograd.Function):
    """The composition with its gradients, which autograd would take longer over."""

    @staticmethod
    def forward(ctx, x, score, value, value_bias, out, out_bias):
        result, *saved = _compose(x, score, value, value_bias, out, out_bias)
        ctx.save_for_backward(x, score, value, out, *saved)
        return result

    @staticmethod
    def backward(ctx, grad):
        saved = x, score, value, out, forth, back, means, concepts, values = ctx.saved_tensors  # once: may recompute
        d_values = back.mT @ grad  # [B, K, C]
        d_concepts = d_values @ out
        d_means = d_concepts @ value
        d_scores = torch._softmax_backward_data(grad @ values.mT, back, 2, back.dtype)  # [B, N, K]
        d_scores += torch._softmax_backward_data(x @ d_means.mT, forth, 1, forth.dtype)
        d_x = torch.baddbmm(grad, forth, d_means)
        d_x.view(-1, d_x.shape[2]).addmm_(d_scores.flatten(0, 1), score)
        tokens = ((d_scores, x), (d_concepts, means), (d_values, concepts))
        d_score, d_value, d_out = (a.flatten(0, 1).T @ b.flatten(0, 1) for a, b in tokens)
        found = (d_x, d_score, d_value, d_concepts.sum((0, 1)), d_out, grad.sum((0, 1)))
        wanted = [g if need else None for g, need in zip(found, ctx.needs_input_grad, strict=True)]
        return tuple(once(wanted, grad, *saved))
