"""The figures that the project set itself for LGA, computed from what the benchmarks recorded."""

from collections.abc import Sequence
from typing import Any

from ..shapes import (
    COMPILED_LGA,
    FORWARD,
    GPU_BATCH,
    LGA_BATCH,
    LGA_SIZES,
    MEMORY_FORMATS,
    PAPER,
    RELEASED,
    TRAINING,
    LgaCase,
)
from .rows import FAST, GPU_DTYPE, GPU_FAST, HOW, NUMBERS, Record, Sample, describe, launched, ratios, row, select

SPEEDUPS = (
    (PAPER, FORWARD, "eager", 4.0),
    (PAPER, FORWARD, "compile", 2.0),
    (RELEASED, FORWARD, "eager", 5.0),
    (PAPER, TRAINING, "eager", 3.0),
    (PAPER, TRAINING, "compile", 1.5),
)
SAVED = 3.0

# On a GPU, None: for comparison.
GPU_SPEEDUPS = (
    (PAPER, FORWARD, "eager", 4.0),
    (PAPER, FORWARD, "compile", 2.0),
    (PAPER, TRAINING, "eager", None),
    (PAPER, TRAINING, "compile", None),
)


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """LGA's rows."""
    return [*(speedup_row(records, *asked) for asked in SPEEDUPS), saved_row(records)]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """LGA's rows on a GPU in bfloat16, launches and graphs each by themselves; by the median of the rounds."""
    by_launch = launched(records)
    return [gpu_speedup_row(found, launch, *asked) for asked in GPU_SPEEDUPS for launch, found in by_launch]


def speedup_row(records: Sequence[Record], contraction: str, work: str, over: str, asked: float) -> dict[str, Any]:
    sizes = COMPILED_LGA if over == "compile" else LGA_SIZES
    cases = [LgaCase(LGA_BATCH, *size, contraction, work) for size in sizes]
    what = f"LGA {work}, {contraction}, {NUMBERS[len(sizes)]} shapes, batch {LGA_BATCH}, geometric mean"
    samples = ratios(of(records, cases, rival=FAST), over)
    return row(what, f"times {over}'s speed", ">=", asked, samples, len(cases))


def saved_row(records: Sequence[Record]) -> dict[str, Any]:
    """The case that saves most, compared with its x."""
    cases = [LgaCase(LGA_BATCH, *size, PAPER, TRAINING) for size in LGA_SIZES]
    found = of(records, cases, rival=FAST)
    sizes = [record["saved_for_backward_bytes"] / record["bytes_of_x"] for record in found]
    samples = [Sample(describe(record), size, size) for record, size in zip(found, sizes, strict=True)]
    most = sorted(samples, key=lambda sample: sample.least)[-1:] if len(samples) == len(cases) else []
    what = f"LGA, saved for backward, the most of five shapes, batch {LGA_BATCH}, parameters left out"
    return row(what, "times the size of x", "<=", SAVED, most, cases=1)


def gpu_speedup_row(
    records: Sequence[Record], launch: str, contraction: str, work: str, over: str, asked: float | None
) -> dict[str, Any]:
    cases = [
        LgaCase(GPU_BATCH, *size, contraction, work, layout, GPU_DTYPE)
        for layout in MEMORY_FORMATS
        for size in LGA_SIZES
    ]
    what = f"LGA {work}, {contraction}, batch {GPU_BATCH}, five shapes in both formats, {HOW[launch]}, geometric mean"
    samples = ratios(of(records, cases, rival=GPU_FAST), over)
    return row(what, f"times {over}'s speed", ">=", asked, samples, len(cases), by="median")


def of(records: Sequence[Record], cases: Sequence[LgaCase], **wanted: object) -> list[Record]:
    """The records of these cases."""
    return [record for case in cases for record in select(records, suite="lga", **case.facts(), **wanted)]
