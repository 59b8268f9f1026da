"""Reading a result file: pytest-benchmark's JSON with what fastattn's benchmarks add to it.

Besides pytest-benchmark's own keys there are, for each benchmark, `extra_info` with `suite` (SCSA's module, tuned, copy
and precision; CFSAM's attention and pyramid; lga; acp; cat; model; python, traffic, memory and convergence, which have
no rivals), `operation`, the case (`work`, `shape`, `dtype`, `format`, `model`, on a GPU `launch`, and what else tells
it from others), `rival`, `least_ms`, `median_ms`, `speedup` over each other rival of the same interleaved run, and the
figures derived from them, or of a training its `backend`, `losses` and `accuracy`; `machine_info`; and under `fastattn`
the `schema`, the `selection` that ran, the `summary` of asked and measured figures, and for a GPU the `device` (cuda)
and the `part` or `parts` that ran.
"""

import json
from pathlib import Path
from typing import Any

SCHEMA = 1
NEEDED = ("suite", "rival", "shape", "format", "dtype", "work", "least_ms", "speedup")
ALONE = ("python", "traffic", "memory", "convergence")  # suites without rivals


class ResultError(ValueError):
    """A file that holds no result of fastattn's benchmarks; the message says what is wrong with it."""


def load(path: str | Path) -> dict[str, Any]:
    """Read a result file; ResultError if it is missing, empty, cut short, or of another schema."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from error
    if not text.strip():
        raise ResultError(f"{path} is empty")
    try:
        result = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultError(f"{path} is not JSON, or is cut short: {error}") from error
    ours = result.get("fastattn") if isinstance(result, dict) else None
    if not isinstance(ours, dict) or not isinstance(result.get("benchmarks"), list):
        raise ResultError(f"{path} is no result of fastattn's benchmarks")
    if ours.get("schema") != SCHEMA:
        raise ResultError(f"{path} has schema {ours.get('schema')!r}; this version reads {SCHEMA}")
    for benchmark in result["benchmarks"]:
        info = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
        needed = ("shape",) if info and info.get("suite") in ALONE else NEEDED
        missing = [name for name in needed if name not in (info or {})]
        if missing:
            name = benchmark.get("name", "a benchmark") if isinstance(benchmark, dict) else "a benchmark"
            raise ResultError(f"{path}: {name} lacks {', '.join(missing)}")
    return result


def records(result: dict[str, Any], suite: str) -> list[dict[str, Any]]:
    """The benchmarks of one suite, as their `extra_info`."""
    return [b["extra_info"] for b in result["benchmarks"] if b["extra_info"]["suite"] == suite]
