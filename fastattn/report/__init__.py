"""From benchmarks' result files to tables, plots and pages: `python -m fastattn report RESULT.json -o DIR`."""

from .command import main
from .facts import facts
from .plots import Plot, plots
from .quality import warnings
from .readme import NO_GPU, readme_section, update_readme
from .result import SCHEMA, ResultError, failures, load, records
from .table import Table, to_markdown, to_text
from .tables import tables
from .write import write_report

__all__ = [
    "NO_GPU",
    "SCHEMA",
    "Plot",
    "ResultError",
    "Table",
    "facts",
    "failures",
    "load",
    "main",
    "plots",
    "readme_section",
    "records",
    "tables",
    "to_markdown",
    "to_text",
    "update_readme",
    "warnings",
    "write_report",
]
