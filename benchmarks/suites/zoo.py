"""The zoo's gates beside their layers, as their authors wrote them, and torch.compile of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fastattn import zoo
from fastattn.bench.contest import COMPILE, EAGER, fast_backends
from fastattn.bench.devices import Cpu
from fastattn.bench.scene import Scene
from fastattn.bench.sizes import CONTIGUOUS, FORWARD, MEMORY_FORMATS, STAGES, TRAINING, WORKS
from fastattn.bench.suite import Selection, Suite, Table

from ..shapes import case_facts, marked
from .figures import FAST, Record, of_cases, row, saved, select, speedup_row

CPU = Cpu()
BATCH = 8
SMOKE = (64, 7, 7)
STAGE = STAGES[1]
GATES: dict[str, Callable[[int, int], nn.Module]] = {
    "SE": lambda channels, side: zoo.SEModule(channels),
    "ECA": lambda channels, side: zoo.ECA(channels),
    "FCA": lambda channels, side: zoo.FcaLayer(channels, side, side),
    "SimAM": lambda channels, side: zoo.SimAM(),
    "CBAM": lambda channels, side: zoo.CBAM(channels),
    "CA": lambda channels, side: zoo.CoordAtt(channels),
    "ELA": lambda channels, side: zoo.ELA(channels),
    "SA": lambda channels, side: zoo.ShuffleAttention(channels),
}
SMALL = "SE", "ECA", "FCA", "SimAM"  # few operators in eager, of which less is asked


@dataclass(frozen=True)
class ZooCase:
    """A gate on maps (batch, channels, height, width), what is done with it, and whether torch.compile takes part."""

    gate: str
    shape: tuple[int, int, int, int]
    work: str = FORWARD
    memory_format: str = CONTIGUOUS
    compiled: bool = False
    dtype: torch.dtype = torch.float32
    suite = "zoo"

    def __str__(self) -> str:
        parts = [self.gate, "x".join(map(str, self.shape)), self.memory_format, *marked(self.dtype)]
        return "-".join([*parts, self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"gate": self.gate}


class ItsLayers(nn.Module):
    """A gate as its authors wrote it."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module._through_children(x)


def scene(case: ZooCase, device: str = "cpu") -> Scene:
    """A fresh gate, its x, and a random gradient."""
    layout = MEMORY_FORMATS[case.memory_format]
    torch.manual_seed(0)
    module = GATES[case.gate](case.shape[1], case.shape[2]).train(case.work == TRAINING).to(device, case.dtype)
    x, grad = (torch.randn(case.shape).to(device, case.dtype).contiguous(memory_format=layout) for _ in range(2))
    return Scene(case, module, {"x": x}, [grad], ItsLayers)


def rivals(case: ZooCase, device: Cpu = CPU) -> list[str]:
    """Who takes part."""
    return [EAGER, *([COMPILE] if case.compiled else []), *fast_backends("gates", device.type)]


def cases(selection: Selection) -> list[ZooCase]:
    """Every gate, forward and training, in both formats at one stage of a ResNet-50, of which torch.compile takes one;
    in a full run at all stages, each compiled."""
    if selection == "smoke":
        return [ZooCase(gate, (2, *SMOKE), work) for gate in GATES for work in WORKS]
    full = selection == "full"
    return [
        ZooCase(gate, (BATCH, *stage), work, layout, compiled=full or layout == CONTIGUOUS)
        for gate, work, layout, stage in product(GATES, WORKS, MEMORY_FORMATS, STAGES if full else [STAGE])
    ]


SUITES = (
    Suite(
        "zoo",
        "test_zoo",
        Table(
            "The zoo's gates",
            {name: name for name in ("gate", "shape", "format", "work")},
            options=("gate",),
            label=("gate",),
            notes=("eager: the layers as the authors wrote them.",),
            chart="The zoo",
        ),
        cases,
        rivals,
        operation="gates",
        scene=scene,
        eager=lambda scene: ItsLayers(scene.module),
        budget=1.0,
    ),
)

# What the project asked of the zoo: of those with few operators in eager, and of the others.
SPEEDUPS = (
    (FORWARD, "eager", 3.0, 5.0),
    (FORWARD, "compile", 1.5, 3.0),
    (TRAINING, "eager", 2.5, 4.0),
    (TRAINING, "compile", 1.3, 2.0),
)
SAVED = 1.1


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The zoo's rows."""
    return [*(gate_row(records, gate, *asked) for asked in SPEEDUPS for gate in GATES), saved_row(records)]


def measured(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    """The stages in a result: one, or all of a full run."""
    shapes = [record["shape"] for record in select(records, suite="zoo")]
    return [stage for stage in STAGES if [BATCH, *stage] in shapes] or [STAGE]


def gate_row(
    records: Sequence[Record], gate: str, work: str, over: str, asked_of_small: float, asked: float
) -> dict[str, Any]:
    stages = measured(records)
    layouts = [CONTIGUOUS] if over == "compile" and len(stages) == 1 else [*MEMORY_FORMATS]
    found = [ZooCase(gate, (BATCH, *stage), work, layout) for layout in layouts for stage in stages]
    where = f"{'one stage' if len(stages) == 1 else 'four stages'}, {' and '.join(layouts)}"
    what = f"{gate} {work}, batch {BATCH}, {where}, geometric mean"
    return speedup_row(records, found, over, asked_of_small if gate in SMALL else asked, what)


def saved_row(records: Sequence[Record]) -> dict[str, Any]:
    """The case that saves most, compared with its x."""
    found = [ZooCase(gate, (BATCH, *stage), TRAINING) for gate in GATES for stage in measured(records)]
    samples = saved(of_cases(records, found, rival=FAST))
    most = sorted(samples, key=lambda sample: sample.least)[-1:] if len(samples) == len(found) else []
    what = f"The zoo, saved for backward, the most of all gates, batch {BATCH}, parameters left out"
    return row(what, "times the size of x", "<=", SAVED, most, cases=1)
