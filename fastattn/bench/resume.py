"""A result file that grows row by row: an interrupted run keeps what it measured, and the next one goes on."""

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..report import SCHEMA, ResultError, load
from .machine import describe
from .run import Record
from .tables import TITLES

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = ("table", "model", "attention", "variant", "shape", "dtype", "format", "rival")


class GrowingResult:
    """The records of one table under one protocol, written to a file after each row, in the table's order.

    Raises ResultError for a file that was made by another machine, version, commit or protocol, unless it is to be made
    `fresh`, for one that is no result, and where another run writes to it; OSError where it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        table: str,
        protocol: dict[str, Any],
        *,
        wanted: Sequence[Record],
        selection: str,
        device: str,
        kept: bool,
        fresh: bool = False,
    ):
        self.path = path
        self.written: int | None = None
        self.content: dict[str, Any] = {
            "machine_info": describe(memory_kept=kept),
            "commit_info": commit(),
            "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
            "benchmarks": [],
            "fastattn": {
                "schema": SCHEMA,
                "selection": selection,
                "device": device,
                "tables": [table],
                "titles": {table: TITLES[table]},
                "complete": False,
                "protocol": protocol,
                "summary": [],
            },
        }
        if path.exists():
            found = load(path)  # also where it is to be replaced: what is no result stays
            if not fresh:
                self.content = going_on(found, self.content, path)
        self.places = {key: place for place, key in enumerate(map(key_of, [*self.records(), *wanted]))}
        self.write()

    def records(self) -> list[Record]:
        return [benchmark["extra_info"] for benchmark in self.content["benchmarks"]]

    def has(self, wanted: Sequence[Record]) -> bool:
        """Whether all of these records, known by their identities, have been measured."""
        known = {key_of(record) for record in self.records() if "failed" not in record}
        return all(key_of(record) in known for record in wanted)

    def add(self, records: Sequence[Record]) -> None:
        """Add a row's records, in place of what it had before, and write the file."""
        new = {key_of(record): record for record in records}
        every = {key_of(record): record for record in self.records()} | new
        ordered = sorted(every, key=lambda key: self.places.get(key, len(self.places)))
        self.content["benchmarks"] = [{"name": name_of(every[key]), "extra_info": every[key]} for key in ordered]
        self.write()

    def close(self) -> None:
        """Say whether every record that was ever asked of this file is there, measured or failed."""
        self.content["fastattn"]["complete"] = self.places.keys() <= {key_of(record) for record in self.records()}
        self.write()

    def write(self) -> None:
        # in one step: a reader, or a run that goes on, never finds half a file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.written is not None and self.stamp() != self.written:
            raise ResultError(f"{self.path} was changed meanwhile: does another run write to it? Give another -o FILE")
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(rounded(self.content), indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)
        self.written = self.stamp()

    def stamp(self) -> int | None:
        return self.path.stat().st_mtime_ns if self.path.exists() else None


def going_on(found: dict[str, Any], now: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a file holds, if this run may go on with it; ResultError, with what differs."""
    before, here = comparable(found), comparable(now)
    apart = [name for name in here if before.get(name) != here[name]]
    if apart:
        raise ResultError(
            f"{path} was measured with another {', another '.join(apart)}: give another -o FILE, or --fresh"
        )
    found["fastattn"]["complete"] = False
    return found


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """What has to agree for records to stand in one table."""
    machine, ours, source = result.get("machine_info") or {}, result["fastattn"], result.get("commit_info") or {}
    facts = {what: machine.get(what) for what in ("cpu", "gpu", "threads", "isa", "versions", "python")}
    facts |= {"driver": (machine.get("gpu_details") or {}).get("driver")}
    facts |= {"commit": [source.get("id"), source.get("changes")], "table": ours.get("tables")}
    facts |= {what: ours.get(what) for what in ("device", "selection", "protocol")}
    return json.loads(json.dumps(facts))


def key_of(record: Record) -> str:
    return json.dumps([record.get(part) for part in IDENTITY])


def name_of(record: Record) -> str:
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
    """The commit of the checkout that the package runs from, and what stands for changes to it (`changes`, a digest)
    where there are any; unknown elsewhere."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return {"id": "unknown"}
        changes = git("diff", "HEAD")
        known: dict[str, Any] = {"id": git("rev-parse", "HEAD"), "time": git("log", "-1", "--format=%cI")}
    except (OSError, subprocess.SubprocessError):
        return {"id": "unknown"}
    known["dirty"] = bool(changes)
    return known | ({"changes": hashlib.sha256(changes.encode()).hexdigest()[:12]} if changes else {})
