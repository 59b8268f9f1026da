"""SCSA as a module: beside its reference, torch.compile and a plain copy, in two precisions; Triton without a GPU."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn import reference
from fastattn.bench.contest import COMPILE, COPY, EAGER, TUNED, fast_backends
from fastattn.bench.devices import Cpu
from fastattn.bench.scene import Scene
from fastattn.bench.sizes import CHANNELS_LAST, CONTIGUOUS, FORWARD, MEMORY_FORMATS, STAGES, TRAINING, WORKS, name_of
from fastattn.bench.suite import SHAPED, SceneContest, Selection, Suite, Table

from ..shapes import GPU_BATCH, GPU_DTYPES, case_facts, paired
from .figures import (
    FAST,
    GPU_DTYPE,
    GPU_FAST,
    HOW,
    NUMBERS,
    Record,
    Sample,
    describe,
    describe_shape,
    gpu_speedup_row,
    launched,
    of_cases,
    ratios,
    row,
    saved,
    select,
    share_row,
    speedup_row,
)

Shape = tuple[int, int, int, int]
FIVE_SHAPES: tuple[Shape, ...] = (*((8, *stage) for stage in STAGES), (1, 64, 56, 56))
FULL_SHAPES: tuple[Shape, ...] = tuple((batch, *stage) for batch in (1, 8, 32) for stage in STAGES)
# Where torch.compile runs by default: the largest maps and the smallest; training, which it compiles for half a minute,
# in one format.
COMPILED_SHAPES = FIVE_SHAPES[0], FIVE_SHAPES[3]
COMPILED_FORMATS = {FORWARD: [*MEMORY_FORMATS], TRAINING: [CONTIGUOUS]}
COUNTED_STAGES = STAGES[:2]  # whose traffic is counted by default
SMOKE_SHAPES: tuple[Shape, ...] = ((1, 64, 56, 56),)
COPY_SHAPE: Shape = (8, 256, 56, 56)
SAVED_SHAPE: Shape = (8, 64, 56, 56)
GPU_COPY_SHAPE: Shape = (256, 64, 56, 56)  # x and out together exceed the L2
GPU_SMOKE_SHAPE: Shape = (2, 16, 14, 14)


@dataclass(frozen=True)
class Case:
    """One input of a module, what is done with it, and whether torch.compile takes part."""

    shape: Shape
    dtype: torch.dtype = torch.float32
    memory_format: str = CONTIGUOUS
    work: str = FORWARD
    compiled: bool = True
    suite = "module"

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), name_of(self.dtype), self.memory_format]
        return "-".join([*parts, self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self)


class EagerSCSA(nn.Module):
    """The reference on the parameters of an SCSA module, without any dispatch: what eager and
    torch.compile run."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        convolutions = (m.local_dwc, m.global_dwc_s, m.global_dwc_m, m.global_dwc_l)
        return reference.scsa(
            x,
            [convolution.weight for convolution in convolutions],
            [convolution.bias for convolution in convolutions],
            (m.norm_h.weight, m.norm_h.bias),
            (m.norm_w.weight, m.norm_w.bias),
            (m.norm.weight, m.norm.bias),
            (m.q.weight, m.k.weight, m.v.weight),
        )


def scsa_scene(case: Case, device: str = "cpu") -> Scene:
    """A module with random parameters and its x."""
    generator = torch.Generator().manual_seed(0)
    layout = MEMORY_FORMATS[case.memory_format]

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    module = fastattn.SCSA(case.shape[1])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            center = 1.0 if name.startswith("norm") and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.3 * random(tuple(parameter.shape)))
    x, grad = (random(case.shape).to(device, case.dtype).contiguous(memory_format=layout) for _ in range(2))
    return Scene(case, module.to(device, case.dtype), {"x": x}, [grad], EagerSCSA)


class PrecisionContest(SceneContest):
    """The same fast backend in float32 and in bfloat16."""

    def fill_scenes(self) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            scene = scsa_scene(replace(self.case, dtype=dtype))
            for backend in fast_backends("scsa", self.device.type)[:1]:
                self.place(name_of(dtype), scene, scene.truths(), backend)


def rivals(case: Case, device: Cpu, compiler: str = COMPILE) -> list[str]:
    """Who takes part; torch.compile where the case wants it, on a GPU a copy too."""
    copy = [COPY] if device.launches != Cpu.launches else []
    return [EAGER, *([compiler] if case.compiled else []), *copy, *fast_backends("scsa", device.type)]


def in_two_precisions(case: Case, device: Cpu) -> list[str]:
    dtypes = (torch.float32, torch.bfloat16) if fast_backends("scsa", device.type) else ()
    return [name_of(dtype) for dtype in dtypes]


def module_cases(selection: Selection) -> Iterator[Case]:
    shapes = {"smoke": SMOKE_SHAPES, "default": FIVE_SHAPES, "full": FULL_SHAPES}[selection]
    dtypes = (torch.float32, torch.bfloat16) if selection == "full" else (torch.float32,)
    order = product(shapes, dtypes, MEMORY_FORMATS, WORKS)

    def compiled(shape: Shape, dtype: torch.dtype, layout: str, work: str) -> bool:
        return selection != "default" or (shape in COMPILED_SHAPES and layout in COMPILED_FORMATS[work])

    return (Case(*parts, compiled=compiled(*parts)) for parts in order)


def copy_cases(selection: Selection) -> Iterator[Case]:
    return (Case(COPY_SHAPE, memory_format=layout) for layout in MEMORY_FORMATS)


def precision_cases(selection: Selection) -> Iterator[Case]:
    shapes = SMOKE_SHAPES if selection == "smoke" else FIVE_SHAPES
    return (Case(shape, memory_format=layout) for shape, layout in product(shapes, MEMORY_FORMATS))


def gpu_cases(batch: int, selection: Selection, *, tuned: bool = False) -> list[Case]:
    """SCSA on a GPU, what matters most first, since time may run out: forward and training in both formats; where
    the compiler tunes for minutes, one format as a whole."""
    if selection == "smoke":
        training = Case(GPU_SMOKE_SHAPE, torch.float32, CHANNELS_LAST, TRAINING)
        return [training] if tuned else [Case(GPU_SMOKE_SHAPE, torch.bfloat16), training]
    order = product(GPU_DTYPES, MEMORY_FORMATS, WORKS, STAGES)
    cases = [Case((batch, *stage), dtype, layout, work) for dtype, layout, work, stage in order]
    return cases if tuned else sorted(cases, key=lambda case: (GPU_DTYPES.index(case.dtype), WORKS.index(case.work)))


scsa = partial(Suite, operation="scsa", scene=scsa_scene, eager=lambda scene: EagerSCSA(scene.module))
SUITES = (
    scsa(
        "module",
        "test_scsa",
        Table("SCSA as a module", chart="SCSA", roofline=True, readme="some"),
        module_cases,
        rivals,
    ),
    scsa("tuned", None, Table("SCSA beside max-autotune"), rivals=partial(rivals, compiler=TUNED)),
    scsa(
        "copy",
        "test_scsa_over_copy",
        Table("SCSA beside out.copy_(x)"),
        copy_cases,
        lambda case, device: [COPY, *fast_backends("scsa", device.type)],
    ),
    scsa(
        "precision",
        "test_scsa_precision",
        Table(
            "SCSA in two precisions",
            {title: key for title, key in SHAPED.items() if key != "dtype"},
            yardsticks=("float32",),
        ),
        precision_cases,
        in_two_precisions,
        contest=PrecisionContest,
    ),
)
# What a GPU runs, in parts that take minutes each.
PARTS = {f"{batch}": paired(partial(gpu_cases, batch)) for batch in (32, 256)}
PARTS |= {f"{batch}-tuned": paired(partial(gpu_cases, batch, tuned=True), "tuned") for batch in (32, 256)}


# What the project asked of SCSA.
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
        share_row(records, f"{model} + SCSA, batch 8, {layout}", asked, batch=8, model=model, format=layout)
        for model, asked in SHARES
        for layout in MEMORY_FORMATS
    ]
    return [
        *(shapes_row(records, work, over, asked) for work, over, asked in SPEEDUPS),
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
        *(gpu_stages_row(found, launch, *asked) for asked in GPU_SPEEDUPS for launch, found in by_launch),
        *(gpu_share_row(found, launch, layout) for launch, found in by_launch for layout in MEMORY_FORMATS),
        *(gpu_copy_row(found, launch, layout) for launch, found in by_launch for layout in MEMORY_FORMATS),
    ]


def gpu_stages_row(records: Sequence[Record], launch: str, work: str, over: str, asked: float | None) -> dict[str, Any]:
    tuned = over == TUNED  # compiled for minutes, so for one format
    formats = [CONTIGUOUS] if tuned else [*MEMORY_FORMATS]
    cases = [Case((GPU_BATCH, *stage), GPU_DTYPE, layout, work) for layout in formats for stage in STAGES]
    where = CONTIGUOUS if tuned else "in both formats"
    title = f"SCSA {work}, batch {GPU_BATCH}, four shapes {where}, {HOW[launch]}, geometric mean"
    return gpu_speedup_row(records, cases, over, asked, title, suite="tuned" if tuned else None)


def gpu_share_row(records: Sequence[Record], launch: str, layout: str) -> dict[str, Any]:
    title = f"resnet50 + SCSA, batch {GPU_BATCH}, {layout}, {HOW[launch]}"
    wanted = {"model": "resnet50", "format": layout}
    return share_row(records, title, GPU_SHARE, batch=GPU_BATCH, rival=GPU_FAST, by="median", **wanted)


def gpu_copy_row(records: Sequence[Record], launch: str, layout: str) -> dict[str, Any]:
    wanted = {"suite": "module", "rival": GPU_FAST, "work": FORWARD, "format": layout}
    found = select(records, shape=list(GPU_COPY_SHAPE), **wanted)
    title = f"SCSA forward, {describe_shape(GPU_COPY_SHAPE)}, {layout}, {HOW[launch]}"
    # counted as x read and out written, which is what the copy moves: a ratio of times is one of bandwidths
    return row(title, "of the copy's bandwidth", ">=", GPU_OF_COPY, ratios(found, "copy"), cases=1, by="median")


def shapes_row(records: Sequence[Record], work: str, over: str, asked: float) -> dict[str, Any]:
    compiled = over == "compile"
    shapes, formats = (COMPILED_SHAPES, COMPILED_FORMATS[work]) if compiled else (FIVE_SHAPES, [*MEMORY_FORMATS])
    where = "in both formats" if len(formats) == 2 else formats[0]
    title = f"SCSA {work}, {NUMBERS[len(shapes)]} shapes {where}, geometric mean"
    return speedup_row(records, in_formats(shapes, formats, work=work), over, asked, title)


def in_formats(shapes: Sequence[Shape], formats: Iterable[str] = MEMORY_FORMATS, **facts: Any) -> list[Case]:
    return [Case(shape, memory_format=layout, **facts) for shape, layout in product(shapes, formats)]


def copy_row(records: Sequence[Record], layout: str) -> dict[str, Any]:
    found = select(records, suite="copy", rival=FAST, format=layout, shape=list(COPY_SHAPE))
    samples = [Sample("", 1 / sample.least, 1 / sample.median) for sample in ratios(found, "copy")]
    title = f"SCSA forward, {describe_shape(COPY_SHAPE)}, {layout}"
    return row(title, "times the time of out.copy_(x)", "<=", COPIES, samples, cases=1)


def bfloat16_row(records: Sequence[Record]) -> dict[str, Any]:
    title = "SCSA forward in bfloat16, five shapes in both formats, geometric mean"
    cases = in_formats(FIVE_SHAPES, dtype=torch.bfloat16)
    return speedup_row(records, cases, "float32", BFLOAT16, title, rival="bfloat16", suite="precision")


def saved_row(records: Sequence[Record]) -> dict[str, Any]:
    samples = saved(of_cases(records, in_formats([SAVED_SHAPE], work=TRAINING), rival=FAST))
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
