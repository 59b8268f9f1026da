"""A result file that grows row by row: an interrupted run keeps what it measured, and the next one goes on."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..report import SCHEMA, ResultError, load
from .machine import describe
from .run import Record

ROOT = Path(__file__).resolve().parents[2]
SAME = ("machine_info", "commit_info")  # what a file and a run that goes on with it have in common
IDENTITY = ("table", "model", "attention", "variant", "shape", "dtype", "format", "rival")


class GrowingResult:
    """The records of one table under one protocol, written to a file after each row.

    Raises ResultError for a file that was made by another machine, version, commit or protocol, or is no result;
    OSError where it cannot be written.
    """

    def __init__(self, path: Path, table: str, protocol: dict[str, Any], *, selection: str, device: str, kept: bool):
        self.path = path
        head: dict[str, Any] = {
            "machine_info": describe(memory_kept=kept),
            "commit_info": commit(),
            "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
            "benchmarks": [],
            "fastattn": {
                "schema": SCHEMA,
                "selection": selection,
                "device": device,
                "tables": [table],
                "complete": False,
                "protocol": protocol,
                "summary": [],
            },
        }
        self.content = self.earlier(head) if path.exists() else head
        self.content["fastattn"]["complete"] = False
        self.write()

    def earlier(self, head: dict[str, Any]) -> dict[str, Any]:
        """What the file holds, if this run may go on with it; what failed is tried again."""
        found = load(self.path)
        before, now = comparable(found), comparable(head)
        apart = [name for name in now if before.get(name) != now[name]]
        if apart:
            raise ResultError(
                f"{self.path} was measured with another {', another '.join(apart)}: give another -o FILE, or --fresh"
            )
        found["benchmarks"] = [b for b in found["benchmarks"] if "failed" not in b["extra_info"]]
        return found

    def has(self, wanted: list[Record]) -> bool:
        """Whether all of these records, known by their identities, are there."""
        known = [key(benchmark["extra_info"]) for benchmark in self.content["benchmarks"]]
        return all(key(record) in known for record in wanted)

    def add(self, records: list[Record]) -> None:
        """Add a row's records, in place of what it had before, and write the file."""
        new = [key(record) for record in records]
        kept = [b for b in self.content["benchmarks"] if key(b["extra_info"]) not in new]
        self.content["benchmarks"] = kept + [{"name": name(record), "extra_info": record} for record in records]
        self.write()

    def close(self, complete: bool) -> None:
        """Say whether every row has been measured, and with which clocks."""
        self.content["fastattn"]["complete"] = complete
        self.write()

    def write(self) -> None:
        # in one step: a reader, or a run that goes on, never finds half a file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(rounded(self.content), indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """What has to agree for records to stand in one table."""
    machine, ours = result.get("machine_info", {}), result["fastattn"]
    names = ("cpu", "gpu", "threads", "isa", "versions", "python")
    facts = {what: machine.get(what) for what in names}
    facts |= {"commit": (result.get("commit_info") or {}).get("id"), "table": ours.get("tables")}
    facts |= {"device": ours.get("device"), "selection": ours.get("selection"), "protocol": ours.get("protocol")}
    return json.loads(json.dumps(facts))


def key(record: Record) -> str:
    return json.dumps([record.get(part) for part in IDENTITY])


def name(record: Record) -> str:
    """A record's name among a result's benchmarks."""
    parts = (record["model"], record["attention"], record["variant"], "x".join(map(str, record["shape"])))
    return f"{record['table']}[{'-'.join(str(part) for part in (*parts, record['rival']) if part)}]"


def rounded(value: Any) -> Any:
    """The same with six significant digits, more than any clock is worth."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def commit() -> dict[str, Any]:
    """The commit of the checkout that the package runs from, whether it was changed since; unknown elsewhere."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return {"id": "unknown"}
        return {
            "id": git("rev-parse", "HEAD"),
            "time": git("log", "-1", "--format=%cI"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"id": "unknown"}
