"""A figure's row: what was asked, and what the records of the benchmarks say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch

from fastattn.bench.sizes import GRAPH, LAUNCHES, name_of

Record = Mapping[str, Any]
FAST, GPU_FAST = "native", "triton"  # the fast path on a CPU and on a GPU
GPU_DTYPE = torch.bfloat16
NUMBERS = {1: "one", 2: "two", 3: "three", 5: "five"}  # of shapes, in words
HOW = {LAUNCHES: "eager launches", GRAPH: "CUDA graphs"}


@dataclass(frozen=True)
class Sample:
    """One case's part of a figure: by the least rounds, and by the median."""

    case: str
    least: float
    median: float


def row(
    what: str,
    unit: str,
    relation: str,
    asked: float | None,
    samples: Sequence[Sample],
    cases: int,
    by: str = "least",
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "what": what,
        "unit": unit,
        "relation": relation,
        "asked": asked,
        "measured": None,
    }
    if len(samples) < cases:
        return entry
    means = {
        "least": mean([sample.least for sample in samples]),
        "median": mean([sample.median for sample in samples]),
    }
    measured = means.pop(by)
    worst = min(samples, key=lambda sample: getattr(sample, by) if relation == ">=" else -getattr(sample, by))
    entry |= {
        "measured": measured,
        **means,
        "worst": {"value": getattr(worst, by), "case": worst.case} if len(samples) > 1 else None,
    }
    if asked is not None:
        entry["met"] = measured >= asked if relation == ">=" else measured <= asked
    return entry


def mean(values: Sequence[float]) -> float:
    """The geometric mean; of one value, which may be zero, itself."""
    return geometric_mean(values) if len(values) > 1 else values[0]


def ratios(records: Iterable[Record], over: str) -> list[Sample]:
    return [
        Sample(describe(r), r["speedup"][over]["least"], r["speedup"][over]["median"])
        for r in records
        if over in r["speedup"]
    ]


def select(records: Iterable[Record], **wanted: object) -> list[Record]:
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


def launched(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """A GPU's records in bfloat16, launches and graphs each by themselves."""
    asked = select(records, dtype=name_of(GPU_DTYPE))
    return [(launch, select(asked, launch=launch)) for launch in HOW]


def describe_shape(shape: Iterable[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def describe(record: Record) -> str:
    concepts = f", {record['concepts']} concepts" if "concepts" in record else ""
    return f"{describe_shape(record['shape'])} {record['format']}{concepts}"


def speedup_row(
    records: Iterable[Record],
    cases: Sequence[Any],
    over: str,
    asked: float | None,
    what: str,
    *,
    rival: str = FAST,
    suite: str | None = None,
    by: str = "least",
) -> dict[str, Any]:
    """How many times faster a rival is than another in these cases, on a geometric mean."""
    found = of_cases(records, cases, suite, rival=rival)
    return row(what, f"times {over}'s speed", ">=", asked, ratios(found, over), len(cases), by)


gpu_speedup_row = partial(speedup_row, rival=GPU_FAST, by="median")


def of_cases(
    records: Iterable[Record], cases: Sequence[Any], suite: str | None = None, **wanted: object
) -> list[Record]:
    """The records of these cases, of their own suite if no other is named."""
    return [r for case in cases for r in select(records, suite=suite or case.suite, **case.facts(), **wanted)]


def share_row(
    records: Iterable[Record],
    what: str,
    asked: float | None,
    *,
    batch: int | None,
    rival: str = FAST,
    by: str = "least",
    **wanted: object,
) -> dict[str, Any]:
    """The share of a plain model's images per second, beside eager's."""
    found = [r for r in select(records, suite="model", **wanted) if r["shape"][0] == batch]
    fast, eager = (ratios(select(found, rival=name), "plain") for name in (rival, "eager"))
    entry = row(what, "of plain images/s", ">=", asked, fast, cases=1, by=by)
    return entry | {"eager": getattr(eager[0], by) if eager else None}


def saved(records: Iterable[Record]) -> list[Sample]:
    """What is kept for backward, in sizes of x."""
    sizes = [(record, record["saved_for_backward_bytes"] / record["bytes_of_x"]) for record in records]
    return [Sample(describe(record), size, size) for record, size in sizes]
