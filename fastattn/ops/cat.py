"""Conceptual attention by its algebra (see `fastattn.reference.interaction`): the composition of torch's operators that
serves the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import once


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
        x, score, value, out, forth, back, means, concepts, values = ctx.saved_tensors
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
        found = [g if need else None for g, need in zip(found, ctx.needs_input_grad, strict=True)]
        return tuple(once(found, grad, *ctx.saved_tensors))
