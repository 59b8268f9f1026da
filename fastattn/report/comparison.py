"""Several results side by side: what they have in common, case by case, and how many times faster each is than the
first."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .facts import facts, on_gpu
from .result import Record, attempts, suites
from .rivals import by_median, cell, in_order, options_of, shown, spread, spread_notes
from .table import EMPTY, Table, number, times, with_spread
from .throughput import titles_of

Result = Mapping[str, Any]
Case = tuple[str, ...]

# What tells cases apart, in the order of the columns: before and behind what belongs to some suites alone.
BEFORE = ("model", "attention", "variant", "operation", "shape")
BEHIND = ("dtype", "format", "work", "launch", "rival")
THROUGHPUT = "throughput"
OWN = ("native", "triton")  # this package's backends on a CPU and on a GPU
OWN_NOTE = "fastattn: its native backend on a CPU, its Triton backend on a GPU."
RATIO_NOTE = "A ratio's spread is derived, to first order: the root of the sum of its two results' squared spreads."


def comparison_tables(results: Mapping[str, Result]) -> list[Table]:
    """Results by label, as tables: one for each suite, of throughput one for each table, that at least two have in
    common; its rows are the cases and rivals, its figures each result's own and its ratio to the first's."""
    notes = [f"{label}: {origin(result)}." for label, result in results.items()] + differences(results)
    described = {name: suite for result in results.values() for name, suite in suites(result).items()}
    titles = {name: title for result in results.values() for name, title in titles_of(result).items()}
    identity = (*BEFORE, *options_of(described.values()), *BEHIND)
    built = []
    across = len(set(map(on_gpu, results.values()))) > 1
    for suite in (*described, THROUGHPUT):
        found = {label: attempts(result, suite) for label, result in results.items()}
        if across and suite == THROUGHPUT:
            found = {label: list(map(as_fastattn, records)) for label, records in found.items()}
        for table in in_order(record.get("table", "") for records in found.values() for record in records):
            some = {label: [r for r in records if r.get("table", "") == table] for label, records in found.items()}
            present = {label: records for label, records in some.items() if records}
            if len(present) > 1:
                known = described.get(suite, {"title": titles.get(table, table), "models": True})
                built.append(comparison(known, identity, present, notes))
    return built


def as_fastattn(record: Record) -> Record:
    """The same under one name for this package's backends: a CPU's and a GPU's are one case."""
    name, *compiled = record["rival"].split(" ")
    return record | {"rival": " ".join(["fastattn", *compiled])} if name in OWN else record


def differences(results: Mapping[str, Result]) -> list[str]:
    """What makes results hard to compare: other devices, numbers of threads, or versions; a sentence for each."""
    known = {label: comparable(result) for label, result in results.items()}
    found = []
    for name in in_order(name for one in known.values() for name in one):
        values = {label: one.get(name, "unknown") for label, one in known.items()}
        if len(set(values.values())) > 1:
            found.append(f"Not the same {name}: {'; '.join(f'{label}: {value}' for label, value in values.items())}.")
    return found


def comparable(result: Result) -> dict[str, str]:
    """What ought to be the same where times are compared, by name."""
    machine, gpu = result.get("machine_info") or {}, on_gpu(result)
    versions = {f"{name} version": str(version) for name, version in (machine.get("versions") or {}).items()}
    return {
        "device": str(machine.get("gpu" if gpu else "cpu") or "unknown"),
        **({} if gpu else {"number of threads": str(machine.get("threads", "unknown"))}),
        **versions,
    }


def origin(result: Result) -> str:
    """The machine, the versions and the commit of a result."""
    known = facts(result)
    versions, commit = known.get("versions", "unknown versions"), known.get("commit", "unknown")
    return f"{known['machine']}; {versions}; commit {commit}"


def comparison(
    suite: Mapping[str, Any], identity: Case, found: Mapping[str, list[Record]], notes: Iterable[str]
) -> Table:
    """One table's cases, in the order in which the results have them; `found` by label, none of it empty; `identity`
    are the keys that tell cases apart."""

    def case_of(record: Record) -> Case:
        return tuple(shown(record.get(name)) for name in identity)

    every = [record for records in found.values() for record in records]
    by_case = {label: {case_of(record): record for record in measured_last(found[label])} for label in found}
    cases = list(dict.fromkeys(map(case_of, every)))
    first, *others = found
    unit, figure = unit_of(every, bool(suite.get("models")))
    varying = columns(cases)
    rows = []
    for case in cases:
        members = {label: records.get(case) for label, records in by_case.items()}
        own = [cell(record, figure) for record in members.values()]
        ratios = [ratio(members[first], members[label]) for label in others]
        rows.append((*(case[place] for place in varying), *own, *ratios))
    return Table(
        f"Side by side: {suite['title']}",
        (
            *(identity[place] for place in varying),
            *(f"{label} {unit}" for label in found),
            *(f"{label} vs {first}" for label in others),
        ),
        rows,
        [
            f"{unit}: by the {' or '.join(in_order(map(statistic, every)))} of the interleaved rounds. "
            f"a vs {first}: how many times faster a is than {first}. {EMPTY}: not measured there.",
            *spread_notes(every)[:1],
            *([RATIO_NOTE] if any(spread(record) is not None for record in every) else []),
            *([OWN_NOTE] if any(record["rival"].startswith("fastattn") for record in every) else []),
            *constants(identity, cases, varying),
            *reasons(by_case),
            *notes,
        ],
    )


def unit_of(found: Iterable[Record], rate: bool) -> tuple[str, Callable[[Record], float | None]]:
    """What a table's figures are in, and how they are read: as in the tables of a single result."""
    if rate:
        return "images/s", lambda record: record.get("images_per_s")
    if any("launch" in record for record in found):
        return "µs", lambda record: milliseconds(record) * 1e3
    return "ms", milliseconds


def milliseconds(record: Record) -> float:
    return record[f"{statistic(record)}_ms"]


def statistic(record: Record) -> str:
    return "median" if by_median(record) else "least"


def measured_last(found: Iterable[Record]) -> list[Record]:
    """What failed, then what was measured, which is what counts where a case is there twice."""
    return sorted(found, key=lambda record: "failed" not in record)


def columns(cases: list[Case]) -> list[int]:
    """The places of what varies from case to case; all that is known where nothing does."""
    varying = [place for place in range(len(cases[0])) if len({case[place] for case in cases}) > 1]
    return varying or [place for place, value in enumerate(cases[0]) if value != EMPTY]


def constants(identity: Case, cases: list[Case], varying: list[int]) -> list[str]:
    """A sentence on what is the same in all cases, and so has no column."""
    same = [f"{identity[i]} {value}" for i, value in enumerate(cases[0]) if i not in varying and value != EMPTY]
    return [f"In all rows: {', '.join(same)}."] if same else []


def reasons(by_case: Mapping[str, Mapping[Case, Record]]) -> list[str]:
    """A sentence for each reason why rows failed."""
    failed = [
        (label, record["failed"]) for label, found in by_case.items() for record in found.values() if "failed" in record
    ]
    counts = {pair: failed.count(pair) for pair in failed}
    return [f"{label}: {n} row{'' if n == 1 else 's'} failed: {reason}" for (label, reason), n in counts.items()]


def ratio(first: Record | None, other: Record | None) -> str:
    """How many times faster a record is than the first, with the spread that follows from both."""
    if first is None or other is None or "failed" in first or "failed" in other:
        return EMPTY
    one, two = spread(first), spread(other)
    both = None if one is None or two is None else math.hypot(one, two)
    return with_spread(times(number(milliseconds(first) / milliseconds(other))), both)
