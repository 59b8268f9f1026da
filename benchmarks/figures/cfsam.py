"""The figures that the project set itself for CFSAM, computed from what the benchmarks recorded."""

from collections.abc import Sequence
from typing import Any

from ..shapes import FORWARD, GPU_BATCH, LONG, MEMORY_FORMATS, POSITIONS, TRAINING, WORKS, AttentionCase, PyramidCase
from .rows import FAST, GPU_DTYPE, GPU_FAST, HOW, Record, Sample, describe_shape, launched, ratios, row, select

# None: for comparison.
ATTENTION = (
    (FORWARD, "eager", 4.0),
    (FORWARD, "sdpa view", 1.0),
    (TRAINING, "eager", 2.5),
    (TRAINING, "sdpa view", None),
)
MODULE = 1.3
MEMORY = 2.0  # GiB
GATHER = 1.1
GATHER_PASSES = 3  # over the maps: they are read once, tokens are written twice
ATTENTION_PASSES = 4 / 3  # over q, k and v: and out

# On a GPU.
GPU_ATTENTION = ((FORWARD, 1.2), (TRAINING, 1.0))
GPU_MODULE = (("eager", 2.0), ("compile", 1.3))


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """CFSAM's rows."""
    return [
        *(attention_row(records, *asked) for asked in ATTENTION),
        *(module_row(records, layout) for layout in MEMORY_FORMATS),
        *(share_row(records, levels) for levels in POSITIONS),
        *(memory_row(records, work) for work in WORKS),
        *(gather_row(records, layout) for layout in MEMORY_FORMATS),
        attention_traffic_row(records),
    ]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """CFSAM's rows on a GPU in bfloat16, launches and graphs each by themselves; by the median of the rounds."""
    by_launch = launched(records)
    return [
        *(gpu_attention_row(found, launch, *asked) for asked in GPU_ATTENTION for launch, found in by_launch),
        *(gpu_module_row(found, launch, *asked) for asked in GPU_MODULE for launch, found in by_launch),
    ]


def gpu_attention_row(records: Sequence[Record], launch: str, work: str, asked: float) -> dict[str, Any]:
    case = AttentionCase(GPU_BATCH, work=work, dtype=GPU_DTYPE)
    found = select(records, suite="attention", rival=GPU_FAST, **case.facts())
    what = f"{describe_attention(case)}, {HOW[launch]}"
    return row(what, "times sdpa view's speed", ">=", asked, ratios(found, "sdpa view"), cases=1, by="median")


def gpu_module_row(records: Sequence[Record], launch: str, over: str, asked: float) -> dict[str, Any]:
    cases = [PyramidCase(GPU_BATCH, layout, dtype=GPU_DTYPE) for layout in MEMORY_FORMATS]
    found = [r for case in cases for r in select(records, suite="pyramid", rival=GPU_FAST, **case.facts())]
    what = f"CFSAM forward, SSD300's levels, batch {GPU_BATCH} in both formats, {HOW[launch]}, geometric mean"
    return row(what, f"times {over}'s speed", ">=", asked, ratios(found, over), len(cases), by="median")


def attention_row(records: Sequence[Record], work: str, over: str, asked: float | None) -> dict[str, Any]:
    case = AttentionCase(work=work)
    found = select(records, suite="attention", rival=FAST, **case.facts())
    return row(describe_attention(case), f"times {over}'s speed", ">=", asked, ratios(found, over), cases=1)


def describe_attention(case: AttentionCase) -> str:
    return f"Attention {case.work}, {case.parts} parts of {describe_shape(case.shape)}, {case.heads} heads"


def module_row(records: Sequence[Record], layout: str) -> dict[str, Any]:
    case = PyramidCase(memory_format=layout)
    found = select(records, suite="pyramid", rival=FAST, **case.facts())
    what = f"CFSAM forward, SSD300's levels, batch {case.batch}, {layout}"
    return row(what, "times eager's speed", ">=", MODULE, ratios(found, "eager"), cases=1)


def share_row(records: Sequence[Record], levels: str) -> dict[str, Any]:
    """For comparison, in the largest batch that ran."""
    found = select(records, suite="model", model="ssd300_vgg16", levels=levels, format="contiguous")
    batch = max((record["shape"][0] for record in found), default=None)
    found = [record for record in found if record["shape"][0] == batch]
    fast, eager = (ratios(select(found, rival=rival), "plain") for rival in (FAST, "eager"))
    what = f"SSD300 + CFSAM on {levels} levels" + (f", batch {batch}" if batch else "")
    entry = row(what, "of plain images/s", ">=", None, fast, cases=1)
    return entry | {"eager": eager[0].least if eager else None}


def memory_row(records: Sequence[Record], work: str) -> dict[str, Any]:
    case = AttentionCase(1, LONG, work=work)
    found = select(records, suite="memory", backend=FAST, **case.facts())
    sizes = [record["peak_memory_bytes"] / 2**30 for record in found]
    what = f"Attention {work}, {case.parts} parts of {describe_shape(case.shape)}, memory at its peak"
    return row(what, "GiB", "<=", MEMORY, [Sample("", size, size) for size in sizes], cases=1)


def gather_row(records: Sequence[Record], layout: str) -> dict[str, Any]:
    found = select(records, suite="traffic", operation="gather", format=layout)
    what = f"Triton, counted traffic of the token gather, SSD300's levels, {layout}, float32"
    return row(what, "times maps + 2 × tokens", "<=", GATHER, moved(found, GATHER_PASSES), cases=1)


def attention_traffic_row(records: Sequence[Record]) -> dict[str, Any]:
    """For comparison: what the L2 serves is counted too."""
    found = select(records, suite="traffic", operation="attention")
    what = "Triton, counted traffic of attention forward, 2 parts of 1940 tokens, float32"
    return row(what, "times q + k + v + out", "<=", None, moved(found, ATTENTION_PASSES), cases=1)


def moved(records: Sequence[Record], passes: float) -> list[Sample]:
    sizes = [record["forward_traffic_over_x"] / passes for record in records]
    return [Sample("", size, size) for size in sizes]
