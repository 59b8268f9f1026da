"""`python -m fastattn report`: write the report of result files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .facts import on_gpu
from .readme import source_name, update_readme
from .result import ResultError, load
from .write import write_report


def load_all(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Results by label: the file's name, with its directory where two share a name, with a number where two share
    that; ResultError as `load`."""
    files = [Path(path) for path in paths]
    stems = [path.stem for path in files]
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        base = path.stem if stems.count(path.stem) == 1 else f"{path.absolute().parent.name}/{path.stem}"
        label, count = base, 1
        while label in found:
            count += 1
            label = f"{base} ({count})"
        found[label] = load(path)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 with a message on standard error where an input or an output
    fails."""
    parser = argparse.ArgumentParser(
        prog="python -m fastattn report", description="Tables and plots of result files; several side by side."
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="JSON file from `python -m fastattn bench` or from `pytest benchmarks/ --benchmark-only "
        "--benchmark-json=FILE`",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="write report.md, .tex and .html, csv/ and plots/ into this directory"
    )
    parser.add_argument("--readme", metavar="FILE", help="replace the tables between the markers of this README")
    options = parser.parse_args(argv)
    if not options.output and not options.readme:
        parser.error("nothing to do: give -o DIR, --readme FILE, or both")
    try:
        results = load_all(options.results)
        if options.readme and len(set(map(on_gpu, results.values()))) < len(results):
            raise ResultError("a README has room for one result of a CPU and one of a GPU")
        if options.output:
            for path in write_report(results, options.output):
                print(path)
        if options.readme:
            for source, result in zip(options.results, results.values(), strict=True):
                update_readme(result, options.readme, source_name(source, options.readme))
            print(options.readme)
    except (ResultError, OSError, ImportError) as error:
        print(f"fastattn report: {error}", file=sys.stderr)
        return 2
    return 0
