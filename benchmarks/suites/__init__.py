"""What is measured: one file for each attention, with its cases, rivals and titles, and what the project asked of it;
one for models that have them, one for trainings, one for the tools."""

from collections.abc import Sequence
from typing import Any

from fastattn.bench.suite import Suite

from . import cfsam, convergence, interaction, lga, models, scsa, tools, zoo
from .figures import Record

FAMILIES = (scsa, cfsam, lga, interaction, zoo, models)  # in the order of the report
ASKED = (scsa, cfsam, lga, interaction, zoo, convergence, tools)

SUITES: dict[str, Suite] = {suite.name: suite for family in FAMILIES for suite in family.SUITES}
# What a GPU runs, in parts that take minutes each; last what its compiler tunes for minutes.
PARTS = {name: cases for family in (scsa, models, cfsam, lga, interaction) for name, cases in family.PARTS.items()}
PARTS = dict(sorted(PARTS.items(), key=lambda part: part[0].endswith("tuned")))


def described() -> dict[str, Any]:
    """What a result file says about its suites, in the order of the report."""
    return {name: suite.table.facts() for name, suite in SUITES.items()}


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each figure: what, asked, measured; None is measured where not all of its cases ran."""
    return [row for family in ASKED for row in family.summary(records)]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The same for a GPU."""
    return [row for family in ASKED if hasattr(family, "gpu_summary") for row in family.gpu_summary(records)]
