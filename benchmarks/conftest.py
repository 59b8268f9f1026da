"""Options, machine description, progress, and the tables at the end of `pytest benchmarks/
--benchmark-only`."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastattn.bench.contest import COMPILERS, SHORT_EFFORT, SMOKE_EFFORT, Effort
from fastattn.bench.devices import device
from fastattn.bench.machine import describe
from fastattn.bench.memory import keep_freed_memory
from fastattn.bench.resume import rounded
from fastattn.bench.suite import Selection, SuiteContest
from fastattn.report import SCHEMA, tables, to_text

from .shapes import PART, SELECTION
from .suites import PARTS, described, gpu_summary, summary

KEPT = pytest.StashKey[bool]()
PROGRESS = pytest.StashKey["Progress"]()
BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastattn benchmarks")
    group.addoption("--smoke", action="store_true", help="one shape and a few rounds: do the benchmarks still run?")
    group.addoption("--threads", type=int, default=2, help="threads that PyTorch and fastattn use (default: 2)")
    group.addoption(
        "--fresh-memory",
        action="store_true",
        help="leave malloc as it is, so that large results may land in fresh pages at each call",
    )
    group.addoption("--part", choices=PARTS, help="the part of bench_gpu.py to run")
    group.addoption(
        "--part-json", metavar="FILE", help="like --benchmark-json, but written after each case: for a part"
    )
    group.addoption(
        "--deadline", type=float, default=480.0, help="seconds after which a part begins no case (default: 480)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("full") and config.getoption("smoke"):
        raise pytest.UsageError("--full and --smoke exclude each other")
    chosen: Selection = "full" if config.getoption("full") else "smoke" if config.getoption("smoke") else "default"
    config.stash[SELECTION] = chosen
    config.stash[PART] = config.getoption("part")
    config.stash[KEPT] = not config.getoption("fresh_memory") and keep_freed_memory()
    torch.set_num_threads(max(1, min(config.getoption("threads"), os.cpu_count() or 1)))
    if not config.getoption("benchmark_columns", None):  # pytest-benchmark's own table: narrow, case by case
        config.option.benchmark_columns = ["min", "median", "iqr", "rounds", "iterations"]
        config.option.benchmark_sort = "fullname"


@pytest.fixture(scope="session")
def effort(pytestconfig: pytest.Config) -> Effort:
    selection, part = pytestconfig.stash[SELECTION], pytestconfig.stash[PART]
    if selection == "default" and not part:
        return SHORT_EFFORT
    chosen = SMOKE_EFFORT if selection == "smoke" else Effort()
    return replace(chosen, until=BEGAN + pytestconfig.getoption("deadline")) if part else chosen


@pytest.fixture(scope="module")
def contest(request: pytest.FixtureRequest, effort: Effort) -> Iterator[SuiteContest]:
    if time.monotonic() > effort.until:
        pytest.skip("the part's time is up")
    suite, case, where = request.param
    contest = suite.hold(case, effort, where)
    yield contest
    contest.close()
    write_part(request.config)


def report(contest: SuiteContest, name: str, benchmark) -> None:
    """Give a rival's numbers to pytest-benchmark; fail for a wrong result and for a rival that does not run,
    skip where that is the compiler's, where time ran out, and where it takes no part."""
    # Inductor is not the package: left out where it finds no compiler, or rounds more than it may
    give_up = pytest.skip if name.startswith(COMPILERS) else pytest.fail
    if name in contest.late:
        pytest.skip(f"{name}: {contest.late[name]}")
    if name in contest.wrong:
        give_up(f"{name} is wrong, so it is not timed: {contest.wrong[name]}")
    if name in contest.broken:
        give_up(f"{name} does not run: {contest.broken[name]}")
    if name not in contest.rivals:
        pytest.skip(f"{name} takes no part in this case")
    rival, timing, effort = contest.rivals[name], contest.timings[name], contest.effort
    rounds = int(effort.pedantic_seconds / (timing.calls * timing.least)) - 1  # one warms up
    rounds = max(1, min(rounds, effort.pedantic_rounds))
    with rival.context():
        benchmark.pedantic(rival.call, rounds=rounds, iterations=timing.calls, warmup_rounds=int(rounds > 1))
    benchmark.extra_info.update(contest.record(name))


class Progress:
    """A line every few seconds that says where a long run is and how long the rest may take."""

    def __init__(self, config: pytest.Config, count: int):
        self.terminal = config.pluginmanager.get_plugin("terminalreporter")
        self.count, self.done = count, 0
        self.began = self.said = time.monotonic()

    def start(self, nodeid: str) -> None:
        now = time.monotonic()
        if self.terminal is not None and now - self.said > 5:
            passed = now - self.began
            left = ""
            if self.done * 10 >= self.count:  # the first cases say little about the rest
                left = f", about {minutes(passed / self.done * (self.count - self.done))} left"
            name = nodeid.rpartition("::")[2]
            self.terminal.ensure_newline()
            self.terminal.write_line(f"[{self.done + 1}/{self.count}] {name}, {minutes(passed)} passed{left}")
            self.said = now
        self.done += 1


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[PROGRESS] = Progress(session.config, len(session.items))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[PROGRESS].start(item.nodeid)
    return (yield)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info.clear()  # it names the host
    machine_info.update(describe(memory_kept=config.stash[KEPT]))


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict) -> None:
    for name in set(commit_info) - {"id", "time", "dirty"}:
        del commit_info[name]


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)  # the rounds one by one: most of the file
        for name in (
            "params",
            "options",
        ):  # the first is repeated in extra_info, the second says nothing here
            benchmark.pop(name, None)
    records = [benchmark["extra_info"] for benchmark in output_json["benchmarks"]]
    output_json["fastattn"] = ours(config, records)
    output_json.update(rounded(output_json))


def ours(config: pytest.Config, records: list[dict]) -> dict[str, object]:
    """What fastattn.report wants in a result beside the benchmarks."""
    common: dict[str, object] = {"schema": SCHEMA, "selection": config.stash[SELECTION], "suites": described()}
    part = config.stash[PART]
    if part is None:
        return common | {"summary": summary(records)}
    measured = [row for row in gpu_summary(records) if row["measured"] is not None]
    return common | {"device": device().type, "part": part, "summary": measured}


def write_part(config: pytest.Config) -> None:
    """Write what a part has measured so far: it may be cut off."""
    path, session = config.getoption("part_json"), getattr(config, "_benchmarksession", None)
    if not path or not session or not session.benchmarks:
        return
    hook = config.hook
    machine: dict = {}
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine)
    commit = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit)
    result = hook.pytest_benchmark_generate_json(
        config=config, benchmarks=session.benchmarks, include_data=False, machine_info=machine, commit_info=commit
    )
    hook.pytest_benchmark_update_json(config=config, benchmarks=session.benchmarks, output_json=result)
    partial = Path(f"{path}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    records = [benchmark.extra_info for benchmark in getattr(session, "benchmarks", []) if benchmark.extra_info]
    if not records:
        return
    result = {
        "machine_info": describe(memory_kept=config.stash[KEPT]),
        "benchmarks": [{"extra_info": record} for record in records],
        "fastattn": ours(config, records),
    }
    for table in tables(result):
        terminalreporter.write_line("")
        terminalreporter.write_line(to_text(table))
