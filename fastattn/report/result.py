"""Reading a result of schema 3, written by `pytest benchmarks/ --benchmark-json=FILE` or by `python -m fastattn bench`,
and one of schema 2, which is read as if it described its suites.

    machine_info   cpu, threads, isa, gpu, gpu_details, versions {package: version}, ...
    commit_info    id, time, dirty
    datetime       when it was measured
    benchmarks     [{name, extra_info: a record}], with pytest-benchmark's own keys beside them
    fastattn       schema (3), selection (smoke, default, full or quick), device (cuda, or cpu, which may be missing),
                   summary (asked and measured, may be empty), suites {name: what fastattn.bench.suite.Table says of
                   it} in the order of the report; of `bench` also tables, their titles {table: title}, complete
                   (false: it was cut short) and protocol {batches, sizes, repeats, dtype, format, work, amp, ...}; of
                   parts of a run on a GPU `part` or `parts`

A record says in `suite` what it is. python, traffic, memory, convergence and tools have no rivals. All others have:

    rival, shape, dtype, format, work     which member of an interleaved contest did what, and what else tells its case
                                          from the others of the suite (its columns; on a GPU also `launch`)
    least_ms, median_ms, quartiles_ms     milliseconds a call: least, median, [q1, q3] of the rounds;
                                          spread = (q3 - q1) / median; a round averages `calls_per_round` calls
    speedup                               {other: {least, median}} over each other member of the contest: the ratio of
                                          the least rounds, the median of the ratios inside the rounds, and, where it
                                          is known, `quartiles` of these ratios
    images_per_s, gb_per_s, ...           figures derived from the time: by the median in suite throughput and on a
                                          GPU, else by the least
    telemetry                             may be missing: sm_mhz, memory_mhz and cpu_mhz {least, median, most},
                                          temperature_c {most}, power_w, energy_per_image_j, clock_reductions,
                                          other_processes; or `unavailable`, the reason

Suite throughput, of `bench`, has `table`, `model` (null in table modules), `attention`, `variant`, `parameters`,
`multiply_adds` (of an image), `bytes_moved_at_least` or `peak_memory_bytes`, and `note`, where the attention is placed.
Its rivals are "eager", "compile", the fast backend, and that "compiled", with the network around it. Among the members
that `speedup` names are "plain" and "plain compiled", the backbone without attention, where there is one, and "copy" of
a module's input (`copy_gb_per_s`) in table modules. A record that could not be measured has `failed`, the reason, in
place of times and speedup. So has, once read, one whose times are no finite numbers above zero.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import schema2
from .checks import ALONE, TIMES, record_fault, result_fault

Record = dict[str, Any]
SCHEMA = 3
READ = (2, SCHEMA)


class ResultError(ValueError):
    """A file that holds no result of fastattn's benchmarks; the message says what is wrong with it."""


def load(path: str | Path) -> dict[str, Any]:
    """Read a result file, and mark as failed what has no time; ResultError if it is missing, empty, cut short, or of
    another schema, or where a record or what the result says about itself lacks a key or has one of another kind."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from error
    if not text.strip():
        raise ResultError(f"{path} is empty")
    try:
        result = json.loads(text, parse_int=whole)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ResultError(f"{path} is not JSON, or is cut short: {error}") from error
    ours = result.get("fastattn") if isinstance(result, dict) else None
    if not isinstance(ours, dict) or not isinstance(result.get("benchmarks"), list):
        raise ResultError(f"{path} is no result of fastattn's benchmarks")
    if ours.get("schema") not in READ:
        read = " and ".join(map(str, READ))
        raise ResultError(f"{path} has schema {ours.get('schema')!r}; this version reads {read}")
    if ours["schema"] != SCHEMA:
        result = schema2.adapted(result)
    if fault := result_fault(result):
        raise ResultError(f"{path} {fault}")
    for benchmark in result["benchmarks"]:
        name = benchmark.get("name", "a benchmark") if isinstance(benchmark, dict) else "a benchmark"
        info = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
        record: Record = info if isinstance(info, dict) else {}
        if fault := record_fault(record, suites(result)):
            raise ResultError(f"{path}: {name} {fault}")
        benchmark["extra_info"] = normalised(record)
    return result


def whole(digits: str) -> int | float:
    """A whole number; as a float, perhaps infinite, beyond 64 bits."""
    return int(digits) if len(digits) < 19 else float(digits)


def normalised(record: Record) -> Record:
    """The same with `failed` in place of times and speedup where it has no time, and without other figures that are no
    finite numbers."""
    if record["suite"] in ALONE:
        return record
    reason = record.get("failed")
    reason = without_time(record) if reason is None else reason
    if reason is None:
        kept = finite({name: value for name, value in record.items() if name not in ("failed", "speedup", "telemetry")})
        ratios = {name: finite(ratio) for name, ratio in record["speedup"].items()}
        kept["speedup"] = {name: ratio for name, ratio in ratios.items() if {"least", "median"} <= ratio.keys()}
        if record.get("telemetry"):
            kept["telemetry"] = finite(record["telemetry"])
        return kept
    rest = {name: value for name, value in record.items() if name not in (*TIMES, "speedup")}
    return rest | {"failed": " ".join(str(reason).split()) or "no reason given"}


def finite(facts: Mapping[str, Any]) -> Record:
    """The same without what is, or has in it, a number that is not finite."""
    return {name: value for name, value in facts.items() if is_finite(value)}


def is_finite(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, list):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def without_time(record: Mapping[str, Any]) -> str | None:
    """Which of its times is no time."""
    quartiles = record["quartiles_ms"]
    if not isinstance(quartiles, list) or len(quartiles) != 2:
        return f"quartiles_ms is {quartiles!r}"
    times = {"least_ms": record["least_ms"], "median_ms": record["median_ms"]}
    times |= {f"quartiles_ms[{place}]": time for place, time in enumerate(quartiles)}
    for name, time in times.items():
        if not isinstance(time, (int, float)) or not math.isfinite(time) or time <= 0:
            return f"{name} is {time!r}"
    return None


def suites(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a result says about its suites, by name."""
    return result["fastattn"].get("suites") or {}


def of_models(result: Mapping[str, Any]) -> list[str]:
    """The suites of whole models."""
    return [name for name, suite in suites(result).items() if suite.get("models")]


def attempts(result: Mapping[str, Any], suite: str) -> list[Record]:
    """The records of one suite, measured or failed."""
    return [b["extra_info"] for b in result["benchmarks"] if b["extra_info"]["suite"] == suite]


def records(result: Mapping[str, Any], suite: str) -> list[Record]:
    """The measured records of one suite."""
    return [record for record in attempts(result, suite) if "failed" not in record]


def failures(result: Mapping[str, Any]) -> list[Record]:
    """The records of every suite that could not be measured."""
    return [b["extra_info"] for b in result["benchmarks"] if "failed" in b["extra_info"]]
