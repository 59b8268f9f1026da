"""Options, machine description, progress, and the tables at the end of `pytest benchmarks/
--benchmark-only`."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastattn.report import SCHEMA, tables, to_text

from .contest import SMOKE_EFFORT, Contest, Effort
from .figures import summary
from .machine import describe
from .measures import keep_freed_memory
from .shapes import SELECTION, Selection

KEPT = pytest.StashKey[bool]()
PROGRESS = pytest.StashKey["Progress"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastattn benchmarks")
    group.addoption(
        "--full", action="store_true", help="every shape, batch, dtype and backend (an hour or more)"
    )
    group.addoption(
        "--smoke", action="store_true", help="one shape and a few rounds: do the benchmarks still run?"
    )
    group.addoption(
        "--threads", type=int, default=2, help="threads that PyTorch and fastattn use (default: 2)"
    )
    group.addoption(
        "--fresh-memory",
        action="store_true",
        help="leave malloc as it is, so that large results may land in fresh pages at each call",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("full") and config.getoption("smoke"):
        raise pytest.UsageError("--full and --smoke exclude each other")
    chosen: Selection = (
        "full" if config.getoption("full") else "smoke" if config.getoption("smoke") else "default"
    )
    config.stash[SELECTION] = chosen
    config.stash[KEPT] = not config.getoption("fresh_memory") and keep_freed_memory()
    torch.set_num_threads(max(1, min(config.getoption("threads"), os.cpu_count() or 1)))
    if not config.getoption("benchmark_columns", None):  # pytest-benchmark's own table: narrow, case by case
        config.option.benchmark_columns = ["min", "median", "iqr", "rounds", "iterations"]
        config.option.benchmark_sort = "fullname"


@pytest.fixture(scope="session")
def effort(pytestconfig: pytest.Config) -> Effort:
    return SMOKE_EFFORT if pytestconfig.stash[SELECTION] == "smoke" else Effort()


@pytest.fixture(scope="module")
def contest(request: pytest.FixtureRequest, effort: Effort) -> Iterator[Contest]:
    build, case = request.param
    yield build(case, effort)
    torch._dynamo.reset()


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
    return {"schema": SCHEMA, "selection": config.stash[SELECTION], "summary": summary(records)}


def rounded(value: Any) -> Any:
    """The same with six significant digits, more than any clock is worth."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    records = [
        benchmark.extra_info for benchmark in getattr(session, "benchmarks", []) if benchmark.extra_info
    ]
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
