"""What a run does, row by row, in the order of its worth, and how long each phase may take."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import torch

from fastattn.bench.sizes import CHANNELS_LAST, CONTIGUOUS, FORWARD, STAGES, TRAINING, WORKS, name_of

from ..shapes import GPU_BATCH
from ..suites.cfsam import AttentionCase, PyramidCase
from ..suites.interaction import SMOKE_CAT, AcpCase, CatCase
from ..suites.lga import LgaCase
from ..suites.models import ModelCase
from ..suites.scsa import GPU_SMOKE_SHAPE, Case

# seconds of a run of eight minutes; what a phase leaves goes to the next, and the first imports everything
PHASES = {"look": 45.0, "right": 145.0, "fast": 190.0, "why": 90.0}
WHOLE = 480.0
SIDE_BY_SIDE = {"look": 1, "right": 15, "fast": 1, "why": 15}  # processes; most of the time compilers work
MOST = 21  # contests that matter most: SCSA at batch 32, networks, one shape of each other module
OVERLAPPED = "scsa-56", "scsa-7", "lga-24", "cfsam", "acp-14", "cat-197"  # whose launches are let overlap as well
FORMATS = CONTIGUOUS, CHANNELS_LAST
DTYPES = {name_of(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Row:
    """One thing to find out: `task` is a function of the module of that name, `arguments` are its own."""

    phase: str
    task: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    seconds: float = 60.0  # after which it is given up

    def line(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(line: str) -> "Row":
        return Row(**json.loads(line))


def rows(phase: str, *, rehearse: bool = False) -> list[Row]:
    """The rows of a phase; or a few little ones of every kind, of which some fail as rows may on a GPU."""
    return list((rehearsal if rehearse else {"look": look, "right": right, "fast": fast, "why": why}[phase])(phase))


def rehearsal(phase: str) -> Iterator[Row]:
    from . import right

    if phase == "look":
        yield from look(phase)
    elif phase == "right":
        for name in right.TINY:
            yield Row(phase, "right", name, {"module": name, "dtype": "float32", "layout": CONTIGUOUS}, 300)
        yield Row(phase, "raises", "a row that raises")
        yield Row(phase, "dies", "a row whose process dies")
        yield Row(phase, "hangs", "a row that hangs", seconds=2)
    elif phase == "fast":
        for name in TINY:
            yield Row(phase, "warm", f"compile {name}", {"contest": name}, 300)
            yield Row(phase, "fast", name, {"contest": name}, 300)
    else:
        yield Row(phase, "counters", "counters", {"shape": list(GPU_SMOKE_SHAPE)})


def look(phase: str) -> Iterator[Row]:
    yield Row(phase, "look", "machine", seconds=30)


def right(phase: str) -> Iterator[Row]:
    """Every operation, then what surrounds a call, then what `fast` will have compiled, which takes its time."""
    from . import right, special

    for names, more in ((right.MODULES, {}), (right.CUDA, {"backend": "cuda"})):
        for dtype, layout, name in product(DTYPES, FORMATS, names):
            maps = len(right.MODULES[name].shapes[0]) == 4
            main = dtype != "float16" or name in right.NARROW
            if main and (maps or layout == CONTIGUOUS):
                arguments = {"module": name, "dtype": dtype, "layout": layout} | more
                yield Row(phase, "right", " ".join([*more.values(), name, dtype, layout]), arguments, 90)
    for name in special.CHECKS:
        yield Row(phase, "special", name, {"check": name}, 90)
    yield Row(phase, "same_bits", "overlapping launches", seconds=120)
    for name in contests():
        if name.startswith(("scsa", "lga", "acp", "cat")):
            yield Row(phase, "warm", f"compile {name}", {"contest": name}, 90)


def fast(phase: str) -> Iterator[Row]:
    """Contests, and after those that matter most the counters of SCSA's kernels, which want the GPU for themselves."""
    timed = [Row(phase, "fast", name, {"contest": name}) for name in contests()]
    stages = [*contests()][: len(WORKS) * len(STAGES)]
    early = [Row(phase, "overlapped", f"overlapped {name}", {"contest": name}) for name in stages]
    counted = [
        Row(phase, "counters", f"counters {backend} {stage}", {"shape": [GPU_BATCH, *stage], "backend": backend})
        for backend, stage in product(("triton", "cuda"), STAGES)
    ]
    yield from [*timed[:MOST], *early, *counted, *timed[MOST:]]


def why(phase: str) -> Iterator[Row]:
    from . import right

    cuda = [name for name in right.SMALL if name in right.CUDA]
    for tool, (backend, names) in product(("memcheck", "racecheck"), {"triton": right.SMALL, "cuda": cuda}.items()):
        for name in names:
            arguments = {"tool": tool, "module": name, "backend": backend}
            yield Row(phase, "sanitize", f"{tool} {backend} {name}", arguments, 100)


TINY: dict[str, Any] = {  # contests to rehearse with
    "tiny cat": CatCase(1, *SMOKE_CAT),
}


def contests() -> dict[str, Any]:
    """The cases that are timed, by name: SCSA's stages in both batches, networks, then one shape of the others."""
    half = torch.bfloat16
    scsa = [Case((GPU_BATCH, *stage), half, CONTIGUOUS, work) for work, stage in product(WORKS, STAGES)]
    networks = [
        ModelCase(model, GPU_BATCH, layout, dtype)
        for model in ("resnet50", "mobilenetv2_100")
        for layout, dtype in ((CHANNELS_LAST, half), (CONTIGUOUS, torch.float32))
    ]
    others = [
        AttentionCase(GPU_BATCH, 1940, 2, FORWARD, dtype=half),
        AttentionCase(GPU_BATCH, 1940, 2, TRAINING, dtype=half),
        *(LgaCase(GPU_BATCH, 128, 8, 20, work=work, dtype=half) for work in WORKS),
        *(AcpCase(GPU_BATCH, 96, 56, work=work, dtype=half) for work in WORKS),
        *(CatCase(GPU_BATCH, 3136, 64, 192, work, half) for work in WORKS),
        PyramidCase(GPU_BATCH, work=FORWARD, dtype=half),
    ]
    more = [Case((256, *stage), half, CONTIGUOUS, work) for work, stage in product(WORKS, STAGES)]
    more += [Case((GPU_BATCH, *stage), half, CHANNELS_LAST, work) for work, stage in product(WORKS, STAGES)]
    more += [Case((GPU_BATCH, *stage), torch.float32, CONTIGUOUS, work) for work, stage in product(WORKS, STAGES)]
    kinds = {Case: "scsa", ModelCase: "model", AttentionCase: "attention", PyramidCase: "cfsam", LgaCase: "lga"}
    kinds |= {AcpCase: "acp", CatCase: "cat"}
    return {f"{kinds[type(case)]} {case}": case for case in [*scsa, *networks, *others, *more]}
