"""What was asked of the harness and of the report, computed from what the benchmarks recorded."""

from collections.abc import Sequence
from typing import Any

from .figures import Record, Sample, row, select

OVERHEAD, ROWS, SECONDS = 2.0, 500, 20.0


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each."""
    overhead = select(records, suite="tools", operation="overhead")
    report = select(records, suite="tools", operation="report", rows=ROWS)
    return [
        row("Harness around a call of 1 ms", "% longer", "<=", OVERHEAD, samples(overhead), cases=1),
        row(f"Report of a result with {ROWS} rows, every format", "s", "<=", SECONDS, samples(report), cases=1),
    ]


def samples(records: Sequence[Record]) -> list[Sample]:
    return [Sample("", record["measured"], record["measured"]) for record in records]
