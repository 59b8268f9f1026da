"""The first run on a GPU, rehearsed without one: failing rows, the stand-in driver, archives of compiled kernels."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import precompile
from benchmarks.gpu_first import overlap, pool, right, rows, special, summary, why
from fastattn.report import load
from tests.helpers import DEVICE, INTERPRETED

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(INTERPRETED or DEVICE != "cpu", reason="starts processes of its own")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    found = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=found, capture_output=True, text=True, timeout=900)


@pytest.mark.full
def test_a_rehearsal_loses_only_the_rows_that_fail(tmp_path):
    done = run("benchmarks.gpu_first", "--rehearse", "--seconds", "900", "--processes", "2", "--out", str(tmp_path))
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    failed = {row["name"]: row["failed"] for row in found if not row["ok"]}
    assert done.returncode == 1
    assert failed.keys() == {"a row that raises", "a row whose process dies", "a row that hangs", "counters"}, (
        done.stdout
    )
    assert "as rehearsed" in failed["a row that raises"]
    assert "ended with status 3" in failed["a row whose process dies"]
    assert failed["a row that hangs"] == "no answer within 2 s"
    assert "ncu is not installed" in failed["counters"]
    records = load(tmp_path / "result.json")["benchmarks"]
    assert {record["extra_info"]["rival"] for record in records} >= {"eager", "triton"}
    table = (tmp_path / "table.txt").read_text()
    assert "a row that hangs" in table
    assert "tiny cat" in table


def test_no_row_begins_after_the_end(tmp_path):
    noted = []
    waiting = [rows.Row("right", "raises", f"row {i}") for i in range(3)]
    pool.run(
        waiting, "cpu", 2, time.monotonic(), tmp_path, lambda row, found: noted.append((row.name, found["failed"]))
    )
    assert sorted(noted) == [(f"row {i}", "time") for i in range(3)]


def test_rows_are_known_by_their_names():
    for phase in rows.PHASES:
        names = [row.name for row in rows.rows(phase)]
        assert len(set(names)) == len(names), phase
        assert all(rows.Row.parse(row.line()) == row for row in rows.rows(phase))
    rights = [row.arguments for row in rows.rows("right") if row.task == "right"]
    assert {one["module"] for one in rights if "backend" not in one} == set(right.MODULES)
    assert {one["module"] for one in rights if one.get("backend") == "cuda"} == set(right.CUDA)
    assert {*right.NARROW, *right.SMALL, *special.CAPTURED} <= set(right.MODULES)


def test_plans_are_made_anew_for_launches_that_overlap():
    pytest.importorskip("triton")
    from fastattn.kernels.cat import call
    from fastattn.kernels.common import chain

    def make():
        return call.plan(2, 5, 8, 3, True, "tf32", (torch.float32,) * 4, torch.device("cpu"), ())

    before = make()
    assert make() is before
    with overlap.overlapping():
        assert chain.OVERLAP
        assert make() is not before
        during = make()
    assert not chain.OVERLAP
    assert make() not in (before, during)


@pytest.mark.triton
def test_what_is_wrong_is_seen(monkeypatch):
    """A gradient that is off by a thousandth, and one that moves."""
    calls = 0

    def run(module, inputs, backend, grads=()):
        nonlocal calls
        found = plain(module, inputs, "reference", grads)
        if backend == "triton":
            calls += 1
            found["v.weight"] = found["v.weight"] * 1.001
            found["k.weight"] = found["k.weight"] * (1 + calls * 1e-7)
        return found

    plain = right.run
    monkeypatch.setattr(right, "run", run)
    found = right.right("tiny scsa", "float32", "contiguous")
    assert not found["ok"]
    assert list(found["wrong"]) == ["v.weight"]
    assert found["moving"] == ["k.weight"]


def hazard(first: str, second: str) -> list[str]:
    return [f"========= Error: Race reported between {first}", f"=========     and {second} [4 hazards]"]


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ("Write access at kernel+0x10 in file.py:1", "Write access at kernel+0x10 in file.py:1", 0),
        ("Write access at kernel+0x10 in file.py:1", "Write access at kernel+0x20 in file.py:1", 1),
        ("Write access at kernel+0x10 in file.py:1", "Read access at kernel+0x10 in file.py:1", 1),
    ],
    ids=["an instruction with itself", "two writes", "a write and a read"],
)
def test_an_instruction_is_in_no_race_with_itself(first, second, count):
    assert len(why.races([*hazard(first, second), "========= RACECHECK SUMMARY: 1 hazard displayed"])) == count


def test_archives_know_where_they_are_unpacked(tmp_path):
    entry = tmp_path / "cache" / "KEY"
    entry.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ptx"):
        (entry / name).write_text(name)
    paths = {name: str(entry / name) for name in ("k.cubin", "k.json", "k.ptx")}
    (entry / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))
    precompile.pack(tmp_path / "cache", tmp_path / "archive.tar.gz")
    there = precompile.unpack(tmp_path / "archive.tar.gz", tmp_path / "there")
    group = json.loads((there / "KEY" / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(there / "KEY" / name) for name in ("k.cubin", "k.json")}


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shared library")
def test_the_launch_path_finds_what_was_compiled_beforehand(tmp_path):
    """Also where it was unpacked somewhere else: every kernel is found, none is compiled."""
    pytest.importorskip("triton")
    chosen, archive = ["cat-odd float32 contiguous", "overlapped cat-197"], tmp_path / "archive.tar.gz"
    arguments = ["benchmarks.precompile", "--jobs", "1", "--only", *chosen, "-o", str(archive), "--folder"]
    first = run(*arguments, str(tmp_path / "here"))
    assert first.returncode == 0, first.stdout + first.stderr
    assert " 0 kernels found" in first.stdout
    precompile.unpack(archive, tmp_path / "there")
    second = run(*arguments, str(tmp_path / "there"))
    assert second.returncode == 0, second.stdout + second.stderr
    assert " 0 compiled" in second.stdout


def test_the_summary_of_a_run():
    record = {
        "suite": "module", "rival": "triton", "launch": "graph", "median_ms": 0.5, "dtype": "bfloat16",
        "work": "forward", "speedup": {"eager": {"least": 4.0, "median": 4.0}, "copy": {"least": 0.5, "median": 0.5}},
    }  # fmt: skip
    found = [
        {"phase": "fast", "name": "scsa one", "ok": True, "records": [record], "seconds": 1.0},
        {"phase": "fast", "name": "scsa two", "ok": True, "seconds": 1.0,
         "records": [record | {"speedup": {"eager": {"least": 9.0, "median": 9.0}}}]},
        {"phase": "right", "name": "a late one", "ok": False, "failed": "time", "seconds": 0.0},
        {"phase": "right", "name": "a wrong one", "ok": False, "wrong": {"out": "error 1"}, "seconds": 0.0},
    ]  # fmt: skip
    found.append({"phase": "fast", "name": "overlapped scsa one", "ok": True, "overlapped": {"graph": 0.4}})
    text = summary.text(found, {"fast": 2.0})
    assert re.search(r"scsa one +graph +0\.4000 +0\.5000 +1\.25", text)
    assert "over eager" in text
    assert "6.00" in text  # the geometric mean of 4 and 9
    assert "a wrong one" in text
    assert "a late one" not in text


def test_every_check_has_a_module():
    assert all(callable(check) for check in special.CHECKS.values())
    assert torch.bfloat16 is special.HALF
