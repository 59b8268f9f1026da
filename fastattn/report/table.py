"""A table of text, how its numbers are printed, and its Markdown and terminal forms."""

import math
import textwrap
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

EMPTY, FAILED = "-", "failed"
MARKED_SPREAD = 0.05  # more is marked


@dataclass(frozen=True)
class Table:
    """A title, column names, rows of text, and notes, each a sentence or more, that explain the numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)


def number(value: float | None) -> str:
    """Three significant digits, without an exponent; nothing for NaN, infinity and None."""
    if value is None or not math.isfinite(value):
        return EMPTY
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"


def times(text: str) -> str:
    """A ratio with its sign."""
    return text if text in (EMPTY, FAILED) else text + "×"


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.01 else 1}f}%"


def with_spread(text: str, spread: float | None) -> str:
    """A number and its spread, "3.73 (2%)", marked "3.73 (7%!)" above 5%; alone where its spread is unknown."""
    if spread is None or text in (EMPTY, FAILED):
        return text
    return f"{text} ({percent(spread)}{'!' if spread > MARKED_SPREAD else ''})"


def without_empty_columns(table: Table, keep: Collection[str] = ()) -> Table:
    """The same without the columns that no row has anything for."""
    some = [name in keep or any(row[place] != EMPTY for row in table.rows) for place, name in enumerate(table.columns)]

    def chosen(cells: Iterable[str]) -> tuple[str, ...]:
        return tuple(cell for cell, kept in zip(cells, some, strict=True) if kept)

    return Table(table.title, chosen(table.columns), [chosen(row) for row in table.rows], table.notes)


def to_markdown(table: Table) -> str:
    """A heading, the table, and its notes."""
    numeric = numeric_columns(table)

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def escaped(cells: Iterable[str]) -> str:
        return line(" ".join(cell.replace("|", "\\|").replace("<", "&lt;").split()) for cell in cells)

    notes = [f"- {note}" for note in table.notes] if len(table.notes) > 1 else table.notes
    rule = line("---:" if right else "---" for right in numeric)
    rows = map(escaped, table.rows)
    return "\n".join([f"### {table.title}", "", escaped(table.columns), rule, *rows, "", *notes, ""])


def to_text(table: Table) -> str:
    """The same for a terminal: columns padded, numbers to the right, notes broken into lines."""
    numeric = numeric_columns(table)
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]

    def line(cells: Iterable[str]) -> str:
        padded = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    notes = [textwrap.fill(note, 120, break_long_words=False, break_on_hyphens=False) for note in table.notes]
    return "\n".join([table.title, line(table.columns), rule, *map(line, table.rows), *notes])


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers alone (with ×, a spread or a remark behind), or nothing."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    return [all(cell in (EMPTY, FAILED) or cell[:1].isdigit() for cell in column) for column in columns]
