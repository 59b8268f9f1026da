"""The figures that the project set itself, computed from what the benchmarks recorded: one file for each attention,
one for trainings and one for the tools."""

from collections.abc import Sequence
from typing import Any

from . import cfsam, convergence, interaction, lga, scsa, tools
from .rows import Record


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each figure: what, asked, measured; None is measured where not all of its cases ran."""
    files = scsa, cfsam, lga, interaction, convergence, tools
    return [row for file in files for row in file.summary(records)]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The same for a GPU."""
    return [row for file in (scsa, cfsam, lga, interaction) for row in file.gpu_summary(records)]
