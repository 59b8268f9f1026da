"""How far a result can be trusted: what failed, what the hardware did meanwhile, and what to be wary of."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .result import Record, failures, suites
from .rivals import options_of, shape_text, spread
from .table import EMPTY, MARKED_SPREAD, Table, number, percent, without_empty_columns

MOVED = 0.03  # clocks that moved by more may have moved the times
CLOCKS = {"sm_mhz": "SM clock", "memory_mhz": "memory clock", "cpu_mhz": "CPU clock"}
Result = Mapping[str, Any]


def who(result: Result) -> dict[str, Callable[[Record], str]]:
    """What tells a record from all others, by the name of its column."""
    names = options_of(suites(result).values())

    def options(record: Record) -> str:
        return ", ".join(f"{record[name]} {name}" for name in names if record.get(name))

    return {
        "suite": lambda r: str(r.get("table") or r["suite"]),
        "model": lambda r: str(r.get("model") or EMPTY),
        "attention": lambda r: str(r.get("attention") or r.get("operation") or EMPTY),
        "variant": lambda r: str(r.get("variant") or options(r) or EMPTY),
        "shape": lambda r: shape_text(r["shape"]),
        "dtype": lambda r: r["dtype"],
        "format": lambda r: r["format"],
        "work": lambda r: r["work"],
        "launch": lambda r: str(r.get("launch") or EMPTY),
        "rival": lambda r: r["rival"],
    }


def not_measured_table(result: Result) -> Table:
    """The records that failed, with their reasons."""
    known = who(result)
    rows = [(*(column(record) for column in known.values()), record["failed"]) for record in failures(result)]
    return without_empty_columns(Table("Not measured", (*known, "reason"), rows))


def telemetry_table(result: Result) -> Table:
    """What the hardware did while each record was measured."""
    known = {name: column for name, column in who(result).items() if name not in ("dtype", "format")}
    rows = [
        (*(cell(record) for cell in known.values()), *(cell(record["telemetry"]) for cell in TELEMETRY.values()))
        for record in watched(result)
    ]
    notes = [
        "Clocks: the median of the samples, in brackets the least to the most. Energy: of the whole GPU, by image; one "
        "measurement, without a spread.",
    ]
    return without_empty_columns(Table("Hardware while measuring", (*known, *TELEMETRY), rows, notes))


def watched(result: Result) -> list[Record]:
    """The measured records that have telemetry."""
    found = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    return [record for record in found if record.get("telemetry") and "failed" not in record and "rival" in record]


def clock(seen: Mapping[str, Any], name: str) -> str:
    values = seen.get(name)
    if not values:
        return EMPTY
    least, median, most = (values[which] for which in ("least", "median", "most"))
    return f"{median:.0f}" + (f" ({least:.0f} to {most:.0f})" if f"{least:.0f}" != f"{most:.0f}" else "")


TELEMETRY: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "SM MHz": lambda seen: clock(seen, "sm_mhz"),
    "memory MHz": lambda seen: clock(seen, "memory_mhz"),
    "CPU MHz": lambda seen: clock(seen, "cpu_mhz"),
    "at most °C": lambda seen: number((seen.get("temperature_c") or {}).get("most")),
    "W": lambda seen: number(seen.get("power_w")),
    "J/image": lambda seen: number(seen.get("energy_per_image_j")),
    "clock reductions": lambda seen: ", ".join(seen.get("clock_reductions") or []) or EMPTY,
    "other processes": lambda seen: str(seen.get("other_processes") or EMPTY),
    "not available": lambda seen: str(seen.get("unavailable") or EMPTY),
}


def warnings(result: Result) -> list[str]:
    """What a reader has to know before the numbers, a sentence each; none where nothing is wrong."""
    every = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    seen = watched(result)
    found = []
    if result["fastattn"].get("complete") is False:
        found.append("The run was cut short: rows are missing.")
    if failed := failures(result):
        found.append(f"{rows(len(failed))} could not be measured; the table of what was not measured has the reasons.")
    spreads = [(value, record) for record in every if (value := spread(record)) is not None]
    described = partial(in_words, who(result))
    text = "{} spread by more than {} (interquartile range over median), at most {}: {}."
    found.extend(beyond(text, spreads, MARKED_SPREAD, described))
    for name, what in CLOCKS.items():
        moved = [(swing(record["telemetry"].get(name)), record) for record in seen]
        text = f"During {{}} the {what} moved by more than {{}}, at most by {{}}: {{}}."
        found.extend(beyond(text, moved, MOVED, described))
    if others := [record for record in seen if record["telemetry"].get("other_processes")]:
        found.append(f"Another process used the GPU during {len(others)} of {rows(len(seen))}.")
    return found


def beyond(
    text: str, shares: list[tuple[float, Record]], limit: float, described: Callable[[Record], str]
) -> list[str]:
    """A sentence where shares pass a limit: how many rows of all, the limit, the largest share, whose it is."""
    far = [(share, record) for share, record in shares if share > limit]
    if not far:
        return []
    most, record = max(far, key=lambda pair: pair[0])
    return [text.format(f"{len(far)} of {rows(len(shares))}", percent(limit), percent(most), described(record))]


def rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def swing(clock: Mapping[str, float] | None) -> float:
    """How far a clock moved, as a share of its median."""
    return (clock["most"] - clock["least"]) / clock["median"] if clock and clock["median"] else 0.0


def in_words(known: Mapping[str, Callable[[Record], str]], record: Record) -> str:
    return " ".join(text for column in known.values() if (text := column(record)) != EMPTY)
