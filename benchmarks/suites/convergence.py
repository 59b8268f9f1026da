"""A small network with an attention, trained on scikit-learn's handwritten digits: the same weights, batches and steps
whichever backend computes the attention. Every part of it is smooth, so that rounding stays as small as it is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastattn

from .figures import FAST, Record, Sample, row, select

ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "scsa": fastattn.SCSA,
    "lga": partial(fastattn.LocalGlobalAttention, num_heads=4, height=8, width=8),
}
WIDTH = 16
BATCH, EPOCHS = 48, 5
TRAINED = 1200  # digits; the other 597 are the test's
RATE, MOMENTUM = 0.1, 0.9
FIRST = 20  # steps in which the losses are compared

# What the project asked: millionths that the first losses are apart, and points of accuracy.
LOSSES, POINTS = 100.0, 1.0


class Training(NamedTuple):
    """The loss of every step, and the share of the test's digits that are right after the last."""

    losses: list[float]
    accuracy: float


def digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8), of mean 0 and variance 1, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.tensor(found.target)


def network(attention: str) -> nn.Module:
    """The attention on maps of 8 x 8, which SCSA's window needs, between two convolutions."""

    def convolution(dim: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(dim, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.SiLU()]

    return nn.Sequential(
        *convolution(1, WIDTH, 1),
        ATTENTIONS[attention](WIDTH),
        *convolution(WIDTH, 2 * WIDTH, 2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 2 * WIDTH, 10),
    )


def train(attention: str, backend: str, *, epochs: int = EPOCHS, device: str = "cpu") -> Training:
    """Train a fresh network in float32; SGD whose rate falls to zero."""
    with torch.device("cpu"):  # the same random numbers everywhere
        torch.manual_seed(0)
        model, (images, labels) = network(attention), digits()
        shuffled, test = torch.randperm(len(images)).split([TRAINED, len(images) - TRAINED])
        batches = [batch for _ in range(epochs) for batch in shuffled[torch.randperm(TRAINED)].split(BATCH)]
    model, images, labels = model.to(device), images.to(device), labels.to(device)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    losses = []
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with fastattn.use_backend(backend), exact:
        for batch in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        with torch.no_grad():
            right = model.eval()(images[test]).argmax(dim=1) == labels[test]
    return Training(losses, right.double().mean().item())


def apart(losses: Sequence[float], others: Sequence[float]) -> float:
    """The largest relative difference of two trainings' first losses."""
    pairs = list(zip(losses, others, strict=True))[:FIRST]
    return max(abs(loss - other) / other for loss, other in pairs)


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Two rows for each attention."""
    return [entry for attention in ATTENTIONS for entry in rows(records, attention)]


def rows(records: Sequence[Record], attention: str) -> list[dict[str, Any]]:
    """How far the losses are apart at first, and the accuracies in the end."""
    runs = (select(records, suite="convergence", operation=attention, backend=name) for name in (FAST, "reference"))
    pairs = list(zip(*runs, strict=False))
    losses = [1e6 * apart(found["losses"], expected["losses"]) for found, expected in pairs]
    points = [1e2 * abs(found["accuracy"] - expected["accuracy"]) for found, expected in pairs]
    what = f"{attention.upper()}, a training on digits beside the reference's: "
    return [
        row(what + f"first {FIRST} losses", "millionths apart", "<=", LOSSES, alike(losses), cases=1),
        row(what + "accuracy in the end", "points apart", "<=", POINTS, alike(points), cases=1),
    ]


def alike(values: Sequence[float]) -> list[Sample]:
    return [Sample("", value, value) for value in values]
