"""The figures that the project set itself, computed from what the benchmarks recorded: one file for each attention."""

from collections.abc import Sequence
from typing import Any

from . import cfsam, scsa
from .rows import Record


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each figure: what, asked, measured; None is measured where not all of its cases ran."""
    return [*scsa.summary(records), *cfsam.summary(records)]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The same for a GPU."""
    return [*scsa.gpu_summary(records), *cfsam.gpu_summary(records)]
