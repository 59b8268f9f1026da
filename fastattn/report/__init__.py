"""From a benchmark's result file to tables and a chart: `python -m fastattn report RESULT.json -o DIR`."""

from .command import main, update_readme, write_report
from .result import SCHEMA, ResultError, load
from .tables import Table, tables, to_markdown, to_text

__all__ = [
    "SCHEMA",
    "ResultError",
    "Table",
    "load",
    "main",
    "tables",
    "to_markdown",
    "to_text",
    "update_readme",
    "write_report",
]
