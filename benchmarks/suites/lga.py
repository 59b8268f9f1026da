"""LGA as a module, beside its reference and torch.compile."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn import reference
from fastattn.bench.contest import COMPILE, EAGER, fast_backends
from fastattn.bench.devices import Cpu
from fastattn.bench.scene import Scene
from fastattn.bench.sizes import CHANNELS_LAST, CONTIGUOUS, FORWARD, LGA_SIZES, MEMORY_FORMATS, TRAINING, WORKS
from fastattn.bench.suite import Selection, Suite, Table

from ..shapes import GPU_BATCH, GPU_DTYPES, case_facts, marked, paired
from .figures import (
    FAST,
    GPU_DTYPE,
    HOW,
    NUMBERS,
    Record,
    gpu_speedup_row,
    launched,
    of_cases,
    row,
    saved,
    speedup_row,
)

CPU = Cpu()
CHECKED_IMAGES = 1
# Where torch.compile, which takes half a minute for a training step, runs by default.
COMPILED_LGA = {FORWARD: (LGA_SIZES[0], LGA_SIZES[2]), TRAINING: (LGA_SIZES[2],)}
TRAINED_LGA = tuple(size for size in LGA_SIZES if size[-1] <= 20)  # at larger maps eager takes half a minute
SMOKE_LGA = (8, 4, 9)
LGA_BATCH = 8
PAPER, RELEASED = CONTRACTIONS = ("paper", "released")  # "spatial" is torch's attention


@dataclass(frozen=True)
class LgaCase:
    """Maps (batch, dim, side, side), LGA's heads and contraction, what is done with them, and whether torch.compile
    takes part."""

    batch: int
    dim: int
    heads: int
    side: int
    contraction: str = PAPER
    work: str = FORWARD
    memory_format: str = CONTIGUOUS
    dtype: torch.dtype = torch.float32
    compiled: bool = True
    suite = "lga"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.dim, self.side, self.side

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.heads), self.contraction, self.memory_format]
        return "-".join([*parts, *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"heads": self.heads, "contraction": self.contraction}


class EagerLGA(nn.Module):
    """The reference on the parameters of an LGA module, without any dispatch."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        return reference.local_global_attention(x, *m.operands(), num_heads=m.num_heads, contraction=m.contraction)


def lga_scene(case: LgaCase, device: str = "cpu") -> Scene:
    """A fresh module, its x, and as gradient the output itself: with a random one the sums that make an alpha's
    gradient would cancel to the rounding."""
    layout = MEMORY_FORMATS[case.memory_format]
    torch.manual_seed(0)
    module = fastattn.LocalGlobalAttention(case.dim, case.heads, contraction=case.contraction).to(device)
    x = torch.randn(case.shape).to(device)
    with torch.no_grad():
        grad = EagerLGA(module)(x) if case.work == TRAINING else x
    module.to(case.dtype).to(memory_format=layout)
    x, grad = (t.to(case.dtype).contiguous(memory_format=layout) for t in (x, grad))
    return Scene(case, module, {"x": x}, [grad], EagerLGA, images=CHECKED_IMAGES)


def lga_rivals(case: LgaCase, device: Cpu = CPU) -> list[str]:
    """Who takes part; torch.compile, which takes its time, in the paper's contraction where the case wants it."""
    compiled = case.compiled and case.contraction == PAPER
    return [EAGER, *([COMPILE] if compiled else []), *fast_backends("lga", device.type)]


def sizes(work: str) -> Sequence[tuple[int, int, int]]:
    """Where a work is measured by default."""
    return LGA_SIZES if work == FORWARD else TRAINED_LGA


def lga_cases(selection: Selection) -> list[LgaCase]:
    """LGA at its paper's shapes: forward and training, and forward as released."""
    asked = (PAPER, FORWARD), (PAPER, TRAINING), (RELEASED, FORWARD)
    if selection == "smoke":
        return [LgaCase(1, *SMOKE_LGA, *how) for how in asked]
    if selection == "default":
        order = [(how, size) for how in asked for size in sizes(how[1])]
        return [LgaCase(LGA_BATCH, *size, *how, compiled=size in COMPILED_LGA[how[1]]) for how, size in order]
    every = product((1, LGA_BATCH, 32), LGA_SIZES, product(CONTRACTIONS, WORKS, MEMORY_FORMATS))
    return [LgaCase(batch, *size, *how) for batch, size, how in every]


def gpu_lga_cases(selection: Selection) -> list[LgaCase]:
    """LGA on a GPU, what matters most first: forward in both formats, as released, then training."""
    if selection == "smoke":
        training = LgaCase(1, *SMOKE_LGA, PAPER, TRAINING, CHANNELS_LAST)
        return [LgaCase(1, *SMOKE_LGA, RELEASED, dtype=torch.bfloat16), training]
    ways = [(PAPER, FORWARD, layout) for layout in MEMORY_FORMATS]
    ways += [(RELEASED, FORWARD, CONTIGUOUS), *((PAPER, TRAINING, layout) for layout in MEMORY_FORMATS)]
    order = product(GPU_DTYPES, ways, LGA_SIZES)
    return [LgaCase(GPU_BATCH, *size, *way, dtype) for dtype, way, size in order]


SUITES = (
    Suite(
        "lga",
        "test_lga",
        Table(
            "LGA as a module",
            {name: name for name in ("shape", "heads", "contraction", "dtype", "format", "work")},
            options=("heads", "contraction"),
            label=("contraction",),
            rate=("images/s", "images_per_s"),
            notes=("paper: equation 10; released: what the author's code computes, without queries and keys.",),
            chart="LGA",
            readme="all",
        ),
        lga_cases,
        lga_rivals,
        operation="lga",
        scene=lga_scene,
        eager=lambda scene: EagerLGA(scene.module),
        budget=5.0,
    ),
)
PARTS = {"lga": paired(gpu_lga_cases)}


# What the project asked of LGA.
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
    return [*(paper_row(records, *asked) for asked in SPEEDUPS), saved_row(records)]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """LGA's rows on a GPU in bfloat16, launches and graphs each by themselves; by the median of the rounds."""
    by_launch = launched(records)
    return [gpu_row(found, launch, *asked) for asked in GPU_SPEEDUPS for launch, found in by_launch]


def paper_row(records: Sequence[Record], contraction: str, work: str, over: str, asked: float) -> dict[str, Any]:
    found = [size for size in sizes(work) if over != "compile" or size in COMPILED_LGA[work]]
    cases = [LgaCase(LGA_BATCH, *size, contraction, work) for size in found]
    shapes = f"{NUMBERS[len(found)]} {'shape' if len(found) == 1 else 'shapes'}"
    what = f"LGA {work}, {contraction}, {shapes}, batch {LGA_BATCH}, geometric mean"
    return speedup_row(records, cases, over, asked, what)


def saved_row(records: Sequence[Record]) -> dict[str, Any]:
    """The case that saves most, compared with its x."""
    cases = [LgaCase(LGA_BATCH, *size, PAPER, TRAINING) for size in sizes(TRAINING)]
    samples = saved(of_cases(records, cases, rival=FAST))
    most = sorted(samples, key=lambda sample: sample.least)[-1:] if len(samples) == len(cases) else []
    what = f"LGA, saved for backward, the most of {NUMBERS[len(cases)]} shapes, batch {LGA_BATCH}, parameters left out"
    return row(what, "times the size of x", "<=", SAVED, most, cases=1)


def gpu_row(
    records: Sequence[Record], launch: str, contraction: str, work: str, over: str, asked: float | None
) -> dict[str, Any]:
    cases = [
        LgaCase(GPU_BATCH, *size, contraction, work, layout, GPU_DTYPE)
        for layout in MEMORY_FORMATS
        for size in LGA_SIZES
    ]
    what = f"LGA {work}, {contraction}, batch {GPU_BATCH}, five shapes in both formats, {HOW[launch]}, geometric mean"
    return gpu_speedup_row(records, cases, over, asked, what)
