"""`python -m fastattn report`: write the tables and the charts of a result file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .chart import draw, draw_curves
from .result import ResultError, load, records
from .tables import (
    Table,
    acp_table,
    attention_table,
    cat_table,
    lga_table,
    model_table,
    module_table,
    on_gpu,
    pyramid_table,
    summary_table,
    tables,
    to_markdown,
)

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
GPU_BEGIN, GPU_END = "<!-- gpu results: begin -->", "<!-- gpu results: end -->"
NO_GPU = "No GPU figure has been measured yet."  # between the markers until one has


def write_report(result: dict[str, Any], directory: str | Path) -> list[Path]:
    """Write report.md, report.png and, of a result with trainings, convergence.png into a directory, made if it is
    missing, and return their paths.

    Raises OSError where the directory cannot be written, ImportError without matplotlib.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text, chart, curves = (directory / name for name in ("report.md", "report.png", "convergence.png"))
    draw(result, chart)
    charts = {chart: "speed by case"}
    if records(result, "convergence"):
        draw_curves(result, curves)
        charts[curves] = "loss by step"
    images = [f"![{what}]({path.name})\n" for path, what in charts.items()]
    text.write_text("\n".join(["# Measured results\n", *images, *map(to_markdown, tables(result))]), encoding="utf-8")
    return [text, *charts]


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
    modules = gpu_modules(result) if on_gpu(result) else module_table(result)
    others = [build(result) for build in (attention_table, pyramid_table, lga_table, acp_table, cat_table)]
    shown = [table for table in (summary_table(result), model_table(result), modules, *others) if table.rows]
    return "\n".join([f"Generated from `{source}`.\n", *map(to_markdown, shown)])


def gpu_modules(result: dict[str, Any]) -> Table:
    """SCSA on a GPU in bfloat16 at the smallest batch; the other batches and dtypes are in the report."""
    modules = [b for b in result["benchmarks"] if b["extra_info"]["suite"] == "module"]
    some = [b for b in modules if b["extra_info"]["dtype"] == "bfloat16"]
    batch = min((b["extra_info"]["shape"][0] for b in some), default=None)
    return module_table(result | {"benchmarks": [b for b in some if b["extra_info"]["shape"][0] == batch]})


def source_name(result: str, readme: str) -> str:
    """The result file as a reader of the README finds it: relative to it, or by its name alone where it is
    elsewhere."""
    path, root = Path(result).resolve(), Path(readme).resolve().parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 with a message on standard error where an input or an output
    fails."""
    parser = argparse.ArgumentParser(
        prog="python -m fastattn report", description="Tables and a chart of a result file."
    )
    parser.add_argument(
        "result", help="JSON file from `pytest benchmarks/ --benchmark-only --benchmark-json=FILE`"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="write report.md and report.png into this directory"
    )
    parser.add_argument(
        "--readme", metavar="FILE", help="replace the tables between the markers of this README"
    )
    options = parser.parse_args(argv)
    if not options.output and not options.readme:
        parser.error("nothing to do: give -o DIR, --readme FILE, or both")
    try:
        result = load(options.result)
        if options.output:
            for path in write_report(result, options.output):
                print(path)
        if options.readme:
            update_readme(result, options.readme, source_name(options.result, options.readme))
            print(options.readme)
    except (ResultError, OSError, ImportError) as error:
        print(f"fastattn report: {error}", file=sys.stderr)
        return 2
    return 0
