"""One result from the parts that ran on a GPU: `python -m benchmarks.merge build/gpu`.

Writes benchmarks/results/<gpu>.json and prints the tables for docs/results.md.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastattn.report import SCHEMA, ResultError, load, readme_section

from .suites import PARTS, described, gpu_summary

RESULTS = Path(__file__).parent / "results"


def merge(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The benchmarks of all parts; ResultError if they do not belong together."""
    if not parts:
        raise ResultError("no part has run yet")
    for what, values in {
        "GPU": [part["machine_info"]["gpu"] for part in parts],
        "version": [part["machine_info"]["versions"] for part in parts],
        "commit": [part["commit_info"]["id"] for part in parts],
        "device": [part["fastattn"].get("device") for part in parts],
        "selection": [part["fastattn"]["selection"] for part in parts],
    }.items():
        if any(value != values[0] for value in values):
            raise ResultError(f"the parts differ in {what}, remove the old ones: {values}")
    if parts[0]["fastattn"].get("device") != "cuda":
        raise ResultError("these parts did not run on a GPU")
    parts = sorted(parts, key=lambda part: [*PARTS].index(part["fastattn"]["part"]))
    benchmarks = {benchmark["fullname"]: benchmark for part in parts for benchmark in part["benchmarks"]}
    return {
        "machine_info": parts[0]["machine_info"],
        "commit_info": parts[0]["commit_info"],
        "datetime": min(part["datetime"] for part in parts),
        "benchmarks": list(benchmarks.values()),
        "fastattn": {
            "schema": SCHEMA,
            "selection": parts[0]["fastattn"]["selection"],
            "device": "cuda",
            "suites": described(),
            "parts": {part["fastattn"]["part"]: len(part["benchmarks"]) for part in parts},
            "summary": gpu_summary([benchmark["extra_info"] for benchmark in benchmarks.values()]),
        },
    }


def file_name(gpu: str, selection: str) -> str:
    """The name of a GPU's result: lower case with dashes."""
    rest = "-smoke" if selection == "smoke" else ""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + rest + ".json"


def main(argv: Sequence[str] | None = None) -> int:
    """Merge the parts in a directory; 0 on success, 2 with a message on standard error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument("parts", type=Path, help="the directory with the parts' JSON files")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="where the result goes")
    options = parser.parse_args(argv)
    try:
        result = merge([load(path) for path in sorted(options.parts.glob("*.json"))])
        path = options.output / file_name(result["machine_info"]["gpu"], result["fastattn"]["selection"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ResultError, OSError) as error:
        print(f"benchmarks.merge: {error}", file=sys.stderr)
        return 2
    print(readme_section(result, f"benchmarks/results/{path.name}"))
    print(f"Written: {path}. Then: python -m fastattn report {path} --readme docs/results.md", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
