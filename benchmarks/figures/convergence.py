"""What was asked of trainings by a fast path, computed from what the benchmarks recorded."""

from collections.abc import Sequence
from typing import Any

from ..convergence import ATTENTIONS, FIRST, apart
from .rows import FAST, Record, Sample, row, select

LOSSES = 100.0  # millionths
POINTS = 1.0


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
