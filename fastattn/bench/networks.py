"""Whole networks that are ready to be timed. Of a detector it is backbone, attention and head: what decodes boxes
behind them takes longer the more a network finds, and one with random weights finds nothing of meaning."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import use_backend
from .sizes import FORWARD

CHECKED = 2  # images: float64 convolutions are slow, and every image takes the same path


@contextmanager
def inference(backend: str) -> Iterator[None]:
    with torch.no_grad(), use_backend(backend):
        yield


def prepare(model: nn.Module, x: Tensor) -> nn.Module:
    """Give a fresh model the activations of a trained one: random scales in its normalisations, so that
    every block shows in the output, and running statistics of the photographs."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.copy_(torch.empty(norm.weight.shape).uniform_(0.5, 1.5, generator=generator))
        norm.momentum = 1.0
    if norms:
        with inference("reference"):
            model.train()(x)
    return model.eval()


class Detector(nn.Module):
    """What of a detector computes scores and boxes, by name."""

    def __init__(self, detector: Any):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(x).values()))


def answers(model: Callable[..., Any], *inputs: Any) -> dict[str, Tensor]:
    """What a network or a module computes, by name."""
    found = model(*inputs)
    if isinstance(found, dict):
        return found
    return {"out": found} if isinstance(found, Tensor) else {f"out {i}": out for i, out in enumerate(found)}


def work_on(
    work: str, model: Callable[..., Any], inputs: Sequence[Any], leaves: Sequence[Tensor]
) -> Callable[[], dict[str, Tensor]]:
    """What is timed: a model's answers, in training the gradients of the leaves too, where ones come in."""
    if work == FORWARD:
        return partial(answers, model, *inputs)

    def train() -> dict[str, Tensor]:
        for leaf in leaves:
            leaf.grad = None
        found = answers(model, *inputs)
        torch.autograd.backward(list(found.values()), [torch.ones_like(out) for out in found.values()])
        return found

    return train


def first(work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The answers for the images that are checked."""
    return {name: out[:CHECKED] for name, out in work().items()}
