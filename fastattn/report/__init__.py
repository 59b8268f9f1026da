"""From a benchmark's result file to tables and a chart: `python -m fastattn report RESULT.json -o DIR`."""

from .command import NO_GPU, main, readme_section, update_readme, write_report
from .result import SCHEMA, ResultError, load
from .tables import Table, tables, to_markdown, to_text

__all__ = [
    "NO_GPU",
    "SCHEMA",
    "ResultError",
    "Table",
    "load",
    "main",
    "readme_section",
    "tables",
    "to_markdown",
    "to_text",
    "update_readme",
    "write_report",
]
