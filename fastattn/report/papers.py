"""What the papers print, as facts: read from papers.json, apart from what is measured here, and never estimated.

A table of a paper has one row for each model, attention and variant, by this package's names where it has them, and the
figures below. `beside` names the tables of `bench` that its rows stand beside. What the attentions' own authors print,
each of a training of its own, is kept apart. Of arXiv 2412.18778 no table is known.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .rivals import in_order
from .table import EMPTY, Table

Row = Mapping[str, Any]
FIGURES = {  # the papers' FLOPs are multiply-adds; a frame is an image
    "parameters_m": "M parameters",
    "multiply_adds_g": "G multiply-adds",
    "images_per_s": "images/s",
    "top1": "top-1 %",
    "top5": "top-5 %",
    "voc_map": "VOC mAP",
    "coco_ap50": "COCO AP50",
    "map50": "mAP50",
    "map50_95": "mAP50-95",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_s": "AP small",
    "ap_m": "AP medium",
    "ap_l": "AP large",
    "miou": "mIoU",
}
DERIVED_NOTE = "paper's of plain: derived, its images/s over those of its own plain network."


@dataclass(frozen=True, eq=False)
class PaperTable:
    """One table of a paper: its rows by column, the data and the GPU of all of them, and what is odd about it."""

    paper: str
    source: str
    name: str
    what: str
    data: str
    gpu: str
    beside: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def setting(self) -> str:
        """Whose figures these are, and of what, in a sentence."""
        return f"{self.paper} ({self.source}), {self.name}: {self.data}; {self.gpu}."


@cache
def facts() -> Mapping[str, Any]:
    return json.loads((files(__package__) / "papers.json").read_text("utf-8"))


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Every table of every paper."""
    return tuple(
        PaperTable(
            facts()["papers"][table["paper"]]["name"],
            facts()["papers"][table["paper"]]["source"],
            table["table"],
            table["what"],
            table["data"],
            table["gpu"],
            tuple(table["beside"]),
            tuple(table["columns"]),
            rows_of(table),
            tuple(table["notes"]),
        )
        for table in facts()["tables"]
    )


def rows_of(table: Mapping[str, Any]) -> tuple[Row, ...]:
    return tuple(dict(zip(table["columns"], row, strict=True)) for row in table["rows"])


def matches(row: Row, model: str | None, attention: str, variant: str | None) -> bool:
    return (row["model"], row["attention"], row.get("variant")) == (model, attention, variant)


def printed_in(table: str, model: str | None, attention: str, variant: str | None = None) -> list[PaperTable]:
    """The papers' tables that have figures for a row of a table of `bench`."""
    return [
        paper
        for paper in paper_tables()
        if table in paper.beside and any(matches(row, model, attention, variant) for row in paper.rows)
    ]


def printed(table: str, model: str | None, attention: str, variant: str | None = None) -> dict[str, float]:
    """The figures that a table's own paper prints for a row, by name; `of_plain` is derived from them."""
    who = model, attention, variant
    found: dict[str, float] = {}
    for paper in printed_in(table, *who):
        [row] = [row for row in paper.rows if matches(row, *who)]
        found = {name: value for name, value in row.items() if name in FIGURES} | found
    if attention != "none" and (rate := found.get("images_per_s")):
        plain = printed(table, model, "none").get("images_per_s")
        found |= {"of_plain": rate / plain} if plain else {}
    return found


def whose(table: str, model: str | None, attention: str, variant: str | None = None) -> str:
    """The paper and the tables that a row's figures stand in."""
    names: dict[str, list[str]] = {}
    for paper in printed_in(table, model, attention, variant):
        names.setdefault(paper.paper, []).append(paper.name)
    return "; ".join(f"{paper}, {', '.join(tables)}" for paper, tables in names.items()) or EMPTY


def by_its_authors(model: str | None, attention: str) -> Row | None:
    """What an attention's own authors print, of their own training; None where that is not known."""
    known = rows_of(facts()["authors"])
    return next((row for row in known if (row["model"], row["attention"]) == (model, attention)), None)


def papers_own_tables(measured: Iterable[str]) -> list[Table]:
    """All tables of the papers whose rows stand beside one of the measured tables."""
    known = {*measured}
    concerned = in_order(paper.paper for paper in paper_tables() if known & {*paper.beside})
    return [as_table(paper) for paper in paper_tables() if paper.paper in concerned]


def as_table(paper: PaperTable) -> Table:
    """A paper's table as it prints it."""
    rows = [tuple(EMPTY if row[name] is None else str(row[name]) for name in paper.columns) for row in paper.rows]
    columns = tuple(FIGURES.get(name, name) for name in paper.columns)
    return Table(f"{paper.paper}'s {paper.name}: {paper.what}", columns, rows, [paper.setting, *paper.notes])
