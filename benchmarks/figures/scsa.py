"""The figures that the project set itself for SCSA, computed from what the benchmarks recorded."""

from collections.abc import Sequence
from typing import Any

from ..shapes import (
    COMPILED_SHAPES,
    CONTIGUOUS,
    COPY_SHAPE,
    FIVE_SHAPES,
    FORWARD,
    GPU_BATCH,
    GPU_COPY_SHAPE,
    MEMORY_FORMATS,
    SAVED_SHAPE,
    STAGES,
    TRAINING,
)
from .rows import FAST, GPU_FAST, HOW, NUMBERS, Record, Sample, describe, describe_shape, launched, ratios, row, select

SPEEDUPS = (
    (FORWARD, "eager", 12.0),
    (FORWARD, "compile", 8.0),
    (TRAINING, "eager", 8.0),
    (TRAINING, "compile", 5.0),
)
COPIES = 4.0
SHARES = (("resnet50", 0.97), ("mobilenetv2_100", 0.88))
BFLOAT16 = 1.0
SAVED = 1.1

PYTHON = 60.0  # microseconds
TRAFFIC = ((STAGES[0], 4.3, 5.05), (STAGES[1], 4.6, 5.4))  # forward, backward

# On a GPU, None: for comparison.
GPU_SPEEDUPS = (
    (FORWARD, "eager", 4.0),
    (FORWARD, "compile", 2.0),
    (FORWARD, "max-autotune", None),
    (TRAINING, "eager", 4.0),
    (TRAINING, "compile", 1.5),
    (TRAINING, "max-autotune", None),
)
GPU_SHARE = 0.95
GPU_OF_COPY = 0.40


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """SCSA's rows."""
    shares = [
        share_row(records, model, layout, asked) for model, asked in SHARES for layout in MEMORY_FORMATS
    ]
    return [
        *(speedup_row(records, work, over, asked) for work, over, asked in SPEEDUPS),
        *(copy_row(records, layout) for layout in MEMORY_FORMATS),
        *shares,
        bfloat16_row(records),
        saved_row(records),
        python_row(records),
        *(traffic_row(records, *asked) for asked in budgets()),
    ]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """SCSA's rows on a GPU in bfloat16, launches and graphs each by themselves; by the median of the rounds."""
    by_launch = launched(records)
    return [
        *(gpu_speedup_row(found, launch, *asked) for asked in GPU_SPEEDUPS for launch, found in by_launch),
        *(gpu_share_row(found, launch, layout) for launch, found in by_launch for layout in MEMORY_FORMATS),
        *(gpu_copy_row(found, launch, layout) for launch, found in by_launch for layout in MEMORY_FORMATS),
    ]


def gpu_speedup_row(
    records: Sequence[Record], launch: str, work: str, over: str, asked: float | None
) -> dict[str, Any]:
    tuned = over == "max-autotune"  # compiled for minutes, so for one format
    wanted = {"suite": "tuned", "format": CONTIGUOUS} if tuned else {"suite": "module"}
    shapes = [[GPU_BATCH, *stage] for stage in STAGES]
    found = [r for r in select(records, rival=GPU_FAST, work=work, **wanted) if r["shape"] in shapes]
    formats = CONTIGUOUS if tuned else "in both formats"
    title = f"SCSA {work}, batch {GPU_BATCH}, four shapes {formats}, {HOW[launch]}, geometric mean"
    cases = len(shapes) * (1 if tuned else 2)
    return row(title, f"times {over}'s speed", ">=", asked, ratios(found, over), cases, by="median")


def gpu_share_row(records: Sequence[Record], launch: str, layout: str) -> dict[str, Any]:
    found = [
        record
        for record in select(records, suite="model", model="resnet50", format=layout)
        if record["shape"][0] == GPU_BATCH
    ]
    fast, eager = (ratios(select(found, rival=rival), "plain") for rival in (GPU_FAST, "eager"))
    title = f"resnet50 + SCSA, batch {GPU_BATCH}, {layout}, {HOW[launch]}"
    entry = row(title, "of plain images/s", ">=", GPU_SHARE, fast, cases=1, by="median")
    return entry | {"eager": eager[0].median if eager else None}


def gpu_copy_row(records: Sequence[Record], launch: str, layout: str) -> dict[str, Any]:
    wanted = {"suite": "module", "rival": GPU_FAST, "work": FORWARD, "format": layout}
    found = select(records, shape=list(GPU_COPY_SHAPE), **wanted)
    title = f"SCSA forward, {describe_shape(GPU_COPY_SHAPE)}, {layout}, {HOW[launch]}"
    # counted as x read and out written, which is what the copy moves: a ratio of times is one of bandwidths
    return row(title, "of the copy's bandwidth", ">=", GPU_OF_COPY, ratios(found, "copy"), cases=1, by="median")


def speedup_row(records: Sequence[Record], work: str, over: str, asked: float) -> dict[str, Any]:
    shapes = COMPILED_SHAPES if over == "compile" else FIVE_SHAPES
    title = f"SCSA {work}, {NUMBERS[len(shapes)]} shapes in both formats, geometric mean"
    samples = of_shapes(shapes, records, over, suite="module", rival=FAST, work=work, dtype="float32")
    return row(title, f"times {over}'s speed", ">=", asked, samples, 2 * len(shapes))


def copy_row(records: Sequence[Record], layout: str) -> dict[str, Any]:
    found = select(records, suite="copy", rival=FAST, format=layout, shape=list(COPY_SHAPE))
    samples = [Sample("", 1 / sample.least, 1 / sample.median) for sample in ratios(found, "copy")]
    title = f"SCSA forward, {describe_shape(COPY_SHAPE)}, {layout}"
    return row(title, "times the time of out.copy_(x)", "<=", COPIES, samples, cases=1)


def share_row(records: Sequence[Record], model: str, layout: str, asked: float) -> dict[str, Any]:
    batch = [
        record
        for record in select(records, suite="model", model=model, format=layout)
        if record["shape"][0] == 8
    ]
    fast, eager = (ratios(select(batch, rival=rival), "plain") for rival in (FAST, "eager"))
    entry = row(f"{model} + SCSA, batch 8, {layout}", "of plain images/s", ">=", asked, fast, cases=1)
    return entry | {"eager": eager[0].least if eager else None}


def bfloat16_row(records: Sequence[Record]) -> dict[str, Any]:
    title = "SCSA forward in bfloat16, five shapes in both formats, geometric mean"
    samples = of_shapes(FIVE_SHAPES, records, "float32", suite="precision", rival="bfloat16")
    return row(title, "times float32's speed", ">=", BFLOAT16, samples, 2 * len(FIVE_SHAPES))


def saved_row(records: Sequence[Record]) -> dict[str, Any]:
    found = select(
        records, suite="module", rival=FAST, work=TRAINING, shape=list(SAVED_SHAPE), dtype="float32"
    )
    sizes = [record["saved_for_backward_bytes"] / record["bytes_of_x"] for record in found]
    samples = [Sample(describe(record), size, size) for record, size in zip(found, sizes, strict=True)]
    title = f"SCSA, saved for backward, {describe_shape(SAVED_SHAPE)}, parameters left out"
    return row(title, "times the size of x", "<=", SAVED, samples, cases=2)


def python_row(records: Sequence[Record]) -> dict[str, Any]:
    samples = [
        Sample(f"{describe_shape(record['shape'])} {record['work']}", record["least_us"], record["median_us"])
        for record in select(records, suite="python")
    ]
    return row("Triton, Python of a forward call without its launches", "µs", "<=", PYTHON, samples, 2 * len(STAGES))


def budgets() -> list[tuple[tuple[int, ...], str, float]]:
    works = ("forward", "backward")
    return [(stage, work, most) for stage, *asked in TRAFFIC for work, most in zip(works, asked, strict=True)]


def traffic_row(records: Sequence[Record], stage: Sequence[int], work: str, asked: float) -> dict[str, Any]:
    counted = select(records, suite="traffic", operation="scsa")
    found = [record for record in counted if record["shape"][1:] == list(stage)]
    moved = [record[f"{work}_traffic_over_x"] for record in found]
    samples = [Sample(describe(record), size, size) for record, size in zip(found, moved, strict=True)]
    what = f"Triton, counted traffic of SCSA {work}, {describe_shape(stage)}, float32"
    return row(what, "times the size of x", "<=", asked, samples, len(MEMORY_FORMATS))


def of_shapes(
    shapes: Sequence[Sequence[int]], records: Sequence[Record], over: str, **wanted: object
) -> list[Sample]:
    return ratios([record for record in select(records, **wanted) if tuple(record["shape"]) in shapes], over)


