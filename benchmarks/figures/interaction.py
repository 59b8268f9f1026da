"""The figures that the project set itself for ACP and CAT, computed from what the benchmarks recorded."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..shapes import (
    ACP_BATCH,
    ACP_LAYERS,
    ACP_SIZES,
    CAT_BATCH,
    CAT_SIZES,
    FORWARD,
    GPU_BATCH,
    MEMORY_FORMATS,
    TRAINING,
    TRANSFORMERS,
    AcpCase,
    CatCase,
)
from .rows import FAST, GPU_DTYPE, GPU_FAST, HOW, Record, Sample, describe, launched, ratios, row, select

# None: for comparison.
ACP = (
    (FORWARD, "eager", 2.5),
    (FORWARD, "compile", 1.5),
    (FORWARD, "composed", None),
    (TRAINING, "eager", 1.7),
    (TRAINING, "composed", None),
)
CAT = (
    (FORWARD, "eager", 1.7),
    (FORWARD, "compile", 1.6),
    (FORWARD, "composed", None),
    (TRAINING, "eager", 1.7),
    (TRAINING, "composed", None),
)

# On a GPU.
GPU_SPEEDUPS = (
    (FORWARD, "eager", 3.0),
    (FORWARD, "compile", 1.3),
    (TRAINING, "eager", None),
    (TRAINING, "compile", None),
)


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows of ACP, CAT, and the models that have both."""
    return [
        *(acp_row(records, *asked) for asked in ACP),
        *(cat_row(records, *asked) for asked in CAT),
        *(share_row(records, model) for model in TRANSFORMERS),
    ]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The same on a GPU in bfloat16, launches and graphs each by themselves; by the median of the rounds."""
    return [
        gpu_row(found, launch, operation, *asked)
        for operation in ("acp", "cat")
        for asked in GPU_SPEEDUPS
        for launch, found in launched(records)
    ]


def acp_row(records: Sequence[Record], work: str, over: str, asked: float | None) -> dict[str, Any]:
    cases = [AcpCase(ACP_BATCH, *size, work=work) for size in ACP_SIZES]
    what = f"ACP {work}, {ACP_LAYERS} layers, two shapes, batch {ACP_BATCH}, geometric mean"
    return row(what, f"times {over}'s speed", ">=", asked, of(records, cases, FAST, over), len(cases))


def cat_row(records: Sequence[Record], work: str, over: str, asked: float | None) -> dict[str, Any]:
    cases = [CatCase(CAT_BATCH, *size, work) for size in CAT_SIZES]
    what = f"CAT {work}, three shapes, batch {CAT_BATCH}, geometric mean"
    return row(what, f"times {over}'s speed", ">=", asked, of(records, cases, FAST, over), len(cases))


def share_row(records: Sequence[Record], model: str) -> dict[str, Any]:
    """For comparison."""
    found = [r for r in select(records, suite="model", model=model, work=FORWARD) if r["shape"][0] == ACP_BATCH]
    fast, eager = (ratios(select(found, rival=rival), "plain") for rival in (FAST, "eager"))
    what = f"{model} + ACP + CAT, batch {ACP_BATCH}"
    entry = row(what, "of plain images/s", ">=", None, fast, cases=1)
    return entry | {"eager": eager[0].least if eager else None}


def gpu_row(
    records: Sequence[Record], launch: str, operation: str, work: str, over: str, asked: float | None
) -> dict[str, Any]:
    cases: list[AcpCase | CatCase] = [CatCase(GPU_BATCH, *size, work, GPU_DTYPE) for size in CAT_SIZES]
    shapes = "three shapes"
    if operation == "acp":
        shapes = f"{ACP_LAYERS} layers, two shapes in both formats"
        cases = [
            AcpCase(GPU_BATCH, *size, ACP_LAYERS, work, layout, GPU_DTYPE)
            for layout in MEMORY_FORMATS
            for size in ACP_SIZES
        ]
    what = f"{operation.upper()} {work}, batch {GPU_BATCH}, {shapes}, {HOW[launch]}, geometric mean"
    samples = of(records, cases, GPU_FAST, over)
    return row(what, f"times {over}'s speed", ">=", asked, samples, len(cases), by="median")


def of(records: Sequence[Record], cases: Sequence[AcpCase | CatCase], rival: str, over: str) -> list[Sample]:
    """How many times faster a rival is than another in these cases; CAT's go by their concepts too."""
    found = [r for case in cases for r in select(records, suite=case.operation, rival=rival, **case.facts())]
    return [replace(sample, case=named(record)) for record in found for sample in ratios([record], over)]


def named(record: Record) -> str:
    return describe(record) + (f", {record['concepts']} concepts" if "concepts" in record else "")
