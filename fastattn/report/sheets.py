"""Tables and records as CSV."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from .result import Record
from .table import Table

LONG = 8  # numbers in a list, beyond which it is no cell


def to_csv(table: Table) -> str:
    """The table's cells as they are printed, under the names of its columns."""
    return written([table.columns, *table.rows])


def records_csv(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each record of the results (by label), measured or failed, with the raw numbers: a column for each
    number or text that any record has, "telemetry.power_w" for one inside of another."""
    rows = [
        {"result": label, "name": str(benchmark.get("name", ""))} | flat(benchmark["extra_info"])
        for label, result in results.items()
        for benchmark in result["benchmarks"]
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return written([columns, *([row.get(name, "") for name in columns] for row in rows)])


def flat(record: Record, prefix: str = "") -> dict[str, object]:
    """Nested entries by their path; short lists as text; long ones, the losses of a training, are left out."""
    found: dict[str, object] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found |= {prefix + name: " ".join(map(str, value))} if len(value) <= LONG else {}
        else:
            found[prefix + name] = value
    return found


def written(rows: Iterable[Sequence[object]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
