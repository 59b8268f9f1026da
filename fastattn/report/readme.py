"""The part of a README that is generated from a result."""

from pathlib import Path
from typing import Any

from .facts import on_gpu
from .quality import not_measured_table
from .result import ResultError, attempts, of_models, suites
from .table import to_markdown
from .tables import suite_table, summary_table

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
GPU_BEGIN, GPU_END = "<!-- gpu results: begin -->", "<!-- gpu results: end -->"
NO_GPU = "No GPU figure has been measured yet."  # between the markers until one has


def update_readme(result: dict[str, Any], path: str | Path, source: str) -> None:
    """Replace what stands between the markers of a README, a CPU's or a GPU's, by the result's tables; `source`
    names the result file.

    Raises ResultError where a marker is missing, OSError where the file cannot be read or written.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    opening, closing = (GPU_BEGIN, GPU_END) if on_gpu(result) else (BEGIN, END)
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise ResultError(f"{path} lacks the markers {opening} and {closing}")
    path.write_text(f"{before}{begin}\n\n{readme_section(result, source)}\n{end}{after}", encoding="utf-8")


def readme_section(result: dict[str, Any], source: str) -> str:
    """The tables that a README has room for, as Markdown; `source` names the result file."""
    wanted = {name: suite["readme"] for name, suite in suites(result).items() if suite.get("readme")}
    built = [
        suite_table(some_of(result, name) if how == "some" and on_gpu(result) else result, name)
        for name, how in sorted(wanted.items(), key=lambda each: each[0] not in of_models(result))
    ]
    every = (summary_table(result), *built, not_measured_table(result))
    shown = [table for table in every if table.rows]
    return "\n".join([f"Generated from `{source}`.\n", *map(to_markdown, shown)])


def some_of(result: dict[str, Any], name: str) -> dict[str, Any]:
    """A result of a suite on a GPU in bfloat16 at the smallest batch alone; the others are in the report."""
    some = [r for r in attempts(result, name) if r["dtype"] == "bfloat16"]
    batch = min((r["shape"][0] for r in some), default=None)
    return result | {"benchmarks": [{"extra_info": r} for r in some if r["shape"][0] == batch]}


def source_name(result: str, readme: str) -> str:
    """The result file as a reader of the README finds it: relative to it, or by its name alone where it is
    elsewhere."""
    path, root = Path(result).resolve(), Path(readme).resolve().parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
