"""Find out what must be known of a GPU, in one run of eight minutes: see `benchmarks/gpu_first/rows.py`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import pool, summary
from .rows import PHASES, SIDE_BY_SIDE, WHOLE, Row, rows

RESERVE = 10.0  # seconds for the end
CACHE = Path("build/precompiled-sm90.tar.gz")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_first", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/gpu-first"), help="where results fall")
    parser.add_argument("--seconds", type=float, default=WHOLE, help=f"of the whole run (default: {WHOLE:.0f})")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these")
    parser.add_argument("--rehearse", action="store_true", help="a few little rows on the CPU, some of which fail")
    parser.add_argument("--processes", type=int, help="at most so many side by side")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"kernels compiled before (default: {CACHE})")
    return parser.parse_args(arguments)


def chosen(phase: str, options: argparse.Namespace) -> list[Row]:
    return [row for row in rows(phase, rehearse=options.rehearse) if any(part in row.name for part in options.only)]


def main(arguments: Sequence[str]) -> int:
    """Run the phases in order; 1 where a row does not hold."""
    began = time.monotonic()
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if options.rehearse else "cuda"
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    if options.cache.is_file():
        from ..precompile import unpack

        os.environ["TRITON_CACHE_DIR"] = str(unpack(options.cache, options.out.resolve() / "triton"))
    found: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    with (options.out / "rows.jsonl").open("w", buffering=1) as file:

        def note(row: Row, what: pool.Result) -> None:
            one = {"phase": row.phase, "name": row.name, **what}
            found.append(one)
            print(json.dumps(one), file=file)
            rest = {key: value for key, value in what.items() if key not in ("records", "machine", "kernels")}
            said = json.dumps(rest) if not what["ok"] or row.phase == "look" else what.get("worst", "")
            state = "ok  " if what["ok"] else "FAIL"
            print(f"{time.monotonic() - began:5.0f} s {state} {row.name}: {said[:400]}", flush=True)

        until = began
        for phase, limit in PHASES.items():
            until = min(until + limit * options.seconds / WHOLE, began + options.seconds - RESERVE)
            if phase in options.phases:
                start = time.monotonic()
                processes = min(SIDE_BY_SIDE[phase], options.processes or SIDE_BY_SIDE[phase])
                mine = chosen(phase, options)
                pool.run(mine, device, processes, until, options.out / "logs" / phase, note)
                seconds[phase] = time.monotonic() - start
    result = summary.result(found, device)
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = summary.text(found, seconds)
    (options.out / "table.txt").write_text(table + "\n", encoding="utf-8")
    print(table)
    return int(not all(one["ok"] for one in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
