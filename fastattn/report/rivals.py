"""What the tables of contests share: the records of a case side by side, and a column for each rival."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from .result import Record
from .table import EMPTY, FAILED, Table, number, times, with_spread

Column = Callable[[Record], str]

CASE: dict[str, Column] = {
    "shape": lambda r: shape_text(r["shape"]),
    "dtype": lambda r: r["dtype"],
    "format": lambda r: r["format"],
    "work": lambda r: r["work"],
}
LAUNCH: dict[str, Column] = {"launch": lambda r: r["launch"]}  # launches or graph, on a GPU alone
# What the other rivals are compared with, in every suite.
YARDSTICKS = ("eager", "compile", "max-autotune", "copy")
RATE = ("GB/s", "gb_per_s")  # of a suite that names no other

SPREAD_NOTE = (
    "(n%): the spread, the interquartile range of the rounds over their median, marked ! above 5%; a rate has that of "
    "its time. A round averages as many calls as fill 5 ms, and at least one."
)
RATIO_NOTE = "A ratio has a spread where the ratios inside the rounds were kept, and else none of its own."
MS_NOTE = "ms: the least of the interleaved rounds. a vs b: how many times faster a is than b."
GB_NOTE = "GB/s: what any implementation moves (forward: x and out; with backward: five times x) by that time."
GPU_NOTES = [
    "µs: the median of the interleaved rounds, each of many calls one behind the other between two CUDA events. The L2 "
    "is emptied before a round; then a call that is not timed brings back what fits.",
    "launches: every operator is launched from Python (max-autotune replays CUDA graphs of its own); graph: a CUDA "
    "graph is replayed.",
    "a vs b: how many times faster a is than b. GB/s: what any implementation moves (forward: x and out; with "
    "backward: five times x) by that time; the copy reads x and writes out.",
]


def shape_text(shape: Iterable[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def shown(value: Any) -> str:
    """A fact as a cell."""
    if value is None:
        return EMPTY
    if isinstance(value, list):
        return shape_text(value) if all(isinstance(part, int) for part in value) else ", ".join(map(str, value))
    return str(value)


def columns_of(suite: Mapping[str, Any]) -> dict[str, Column]:
    """What tells a suite's cases apart, by title."""
    return {title: partial(cell_of, key) for title, key in suite["columns"].items()}


def cell_of(key: str, record: Record) -> str:
    name, _, place = key.partition(".")
    return shown(record[name][int(place)] if place else record.get(name))


def options_of(suites: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of records that belong to some of these suites alone."""
    return in_order(name for suite in suites for name in suite.get("options", ()))


def rivals_table(suite: Mapping[str, Any], found: list[Record]) -> Table:
    """One row for each case: every rival's milliseconds, the fast ones' ratios and rates."""
    gpu = any("launch" in record for record in found)
    case = columns_of(suite) | (LAUNCH if gpu else {})
    rate = tuple(suite.get("rate", RATE))
    notes = GPU_NOTES if gpu else [MS_NOTE, *([GB_NOTE] if rate == RATE else []), *suite.get("notes", ())]
    yardsticks = (*YARDSTICKS, *suite.get("yardsticks", ()))
    names = in_order(record["rival"] for record in found)
    plain = [name for name in names if name in yardsticks]
    fast = [name for name in names if name not in yardsticks]
    pairs = [(name, over) for name in fast for over in plain if not (gpu and over == "copy")]
    rows = []
    for members in cases(found, lambda r: tuple(column(r) for column in case.values())):
        some = next(iter(members.values()))
        row = [column(some) for column in case.values()]
        row += [cell(members.get(name), duration) for name in names]
        row += [times_cell(members.get(name), over, inverse=over == "copy") for name, over in pairs]
        row += [cell(members.get(name), lambda r: r.get(rate[1])) for name in fast]
        if gpu:
            row += [of_copy(members.get(name)) for name in fast]
        rows.append(tuple(row))
    columns = (
        *case,
        *(f"{name} {'µs' if gpu else 'ms'}" for name in names),
        *(f"{name} time / copy time" if over == "copy" else f"{name} vs {over}" for name, over in pairs),
        *(f"{name} {rate[0]}" for name in fast),
        *(f"{name} / copy GB/s" for name in fast if gpu),
    )
    return Table(suite["title"], columns, rows, [*notes, *spread_notes(found)])


def spread_notes(found: Iterable[Record]) -> list[str]:
    """What the brackets mean, where there are any."""
    return [SPREAD_NOTE, RATIO_NOTE] if any(spread(record) is not None for record in found) else []


def cases(found: Iterable[Record], key: Callable[[Record], object]) -> list[dict[str, Record]]:
    """The records of the same case together, by rival, in the order in which they ran; a measured one goes before a
    failed one."""
    grouped: dict[object, dict[str, Record]] = {}
    for record in found:
        members = grouped.setdefault(key(record), {})
        if "failed" not in record or record["rival"] not in members:
            members[record["rival"]] = record
    return list(grouped.values())


def grouped(found: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """The records by what a key makes of them, in the order in which they ran."""
    groups: dict[Any, list[Record]] = {}
    for record in found:
        groups.setdefault(key(record), []).append(record)
    return groups


def in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def cell(record: Record | None, figure: Callable[[Record], float | None]) -> str:
    """A figure of a record's with the record's spread, or that it failed, or nothing."""
    if record is None:
        return EMPTY
    return FAILED if "failed" in record else with_spread(number(figure(record)), spread(record))


def spread(record: Record) -> float | None:
    """The interquartile range of a record's rounds over their median; None where it is not known."""
    if "failed" in record or "quartiles_ms" not in record:
        return None
    first, third = record["quartiles_ms"]
    return (third - first) / record["median_ms"]


def duration(record: Record) -> float:
    """Milliseconds, the least; on a GPU microseconds, the median."""
    return record["median_ms"] * 1e3 if "launch" in record else record["least_ms"]


def of_copy(record: Record | None) -> str:
    return number(record["share_of_copy"]) if record and record.get("share_of_copy") else EMPTY


def by_median(record: Record) -> bool:
    """Whether a record's figures go by the median of the rounds, not by the least."""
    return "launch" in record or record["suite"] == "throughput"


def speedup(record: Record, over: str) -> float:
    """How many times faster a rival is than another: by the least, on a GPU and of whole tables by the median."""
    return record["speedup"][over]["median" if by_median(record) else "least"]


def ratio(record: Record | None, over: str, *, inverse: bool = False) -> str:
    """How many times faster a rival is than another, or with `inverse` how many times slower."""
    if record is None or "failed" in record or over not in record["speedup"]:
        return EMPTY
    found = speedup(record, over)
    return number(1 / found if inverse and found else found)


def ratio_spread(record: Record | None, over: str) -> float | None:
    """The interquartile range of the ratios inside the rounds over their median; None where they were not kept."""
    found = record.get("speedup", {}).get(over, {}) if record else {}
    if "quartiles" not in found or not found["median"]:
        return None
    first, third = found["quartiles"]
    return (third - first) / found["median"]


def ratio_cell(record: Record | None, over: str) -> str:
    """A ratio with its spread."""
    return with_spread(ratio(record, over), ratio_spread(record, over))


def times_cell(record: Record | None, over: str, *, inverse: bool = False) -> str:
    """The same with ×."""
    return with_spread(times(ratio(record, over, inverse=inverse)), ratio_spread(record, over))
