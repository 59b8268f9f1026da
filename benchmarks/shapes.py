"""The shapes that the benchmarks run, and which of them a selection takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, Literal

import pytest
import torch

from fastattn.bench.sizes import (
    ACP_SIZES,
    CAT_SIZES,
    CHANNELS_LAST,
    CONTIGUOUS,
    LGA_SIZES,
    MEMORY_FORMATS,
    SSD_LEVELS,
    STAGES,
)
from fastattn.lga.reference import CONTRACTIONS

Shape = tuple[int, int, int, int]
Selection = Literal["smoke", "default", "full"]
SELECTION = pytest.StashKey[Selection]()  # in pytest's config: what was asked for

FIVE_SHAPES: tuple[Shape, ...] = (*((8, *stage) for stage in STAGES), (1, 64, 56, 56))
# Where torch.compile, which takes half a minute for a training step, runs by default: the largest maps, the smallest.
COMPILED_SHAPES = FIVE_SHAPES[0], FIVE_SHAPES[3]
COMPILED_LGA = LGA_SIZES[0], LGA_SIZES[2]
COUNTED_STAGES = STAGES[:2]  # whose traffic is counted by default
SMOKE_SHAPES: tuple[Shape, ...] = ((1, 64, 56, 56),)
COPY_SHAPE: Shape = (8, 256, 56, 56)
SAVED_SHAPE: Shape = (8, 64, 56, 56)
GPU_BATCH = 32
GPU_COPY_SHAPE: Shape = (256, 64, 56, 56)  # x and out together exceed the L2
GPU_SMOKE_SHAPE: Shape = (2, 16, 14, 14)

FORWARD, TRAINING = WORKS = ("forward", "forward + backward")
GPU_DTYPES = (torch.bfloat16, torch.float32)
LAUNCHES, GRAPH = "launches", "graph"  # how work reaches a GPU

SMOKE_LEVELS = ((16, 5), (24, 3), (8, 1))
GPU_SMOKE_DIM = 128  # heads of 16, the least that Triton's kernels take
LONG = 20_000  # tokens
FULL = "LFE + GFE + fusion"
ABLATIONS: dict[str, dict[str, Any]] = {
    "LFE": {"depth": 0, "fusion": False},
    "LFE + GFE": {"fusion": False},
    FULL: {},
}
POSITIONS = ("shallow", "deep", "all")

SMOKE_LGA = (8, 4, 9)
LGA_BATCH = 8
PAPER, RELEASED = CONTRACTIONS

ACP_BATCH, ACP_LAYERS = 8, 2
CAT_BATCH = 4
CAT_TOKENS, CAT_CONCEPTS = ((197, 192), (3136, 192), (16384, 96)), (16, 64, 256)  # tokens with their channels
SMOKE_ACP, SMOKE_CAT = (8, 9), (40, 6, 8)
TRANSFORMERS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")

# What a GPU runs, in parts that take minutes each: SCSA at a batch, the same against max-autotune, whole models, CFSAM,
# LGA, ACP and CAT.
PARTS = ("32", "256", "models", "cfsam", "lga", "interaction", "32-tuned", "256-tuned")
PART = pytest.StashKey[str | None]()


@dataclass(frozen=True)
class Case:
    """One input of a module, what is done with it, and whether torch.compile takes part."""

    shape: Shape
    dtype: torch.dtype = torch.float32
    memory_format: str = CONTIGUOUS
    work: str = FORWARD
    compiled: bool = True

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), name_of(self.dtype), self.memory_format]
        return "-".join([*parts, self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self)


@dataclass(frozen=True)
class AttentionCase:
    """Queries, keys and values (batch, tokens, heads * head_dim) whose tokens attend within parts."""

    batch: int = 4
    tokens: int = 1940
    parts: int = 2
    work: str = FORWARD
    heads: int = 8
    head_dim: int = 32
    dtype: torch.dtype = torch.float32
    memory_format = CONTIGUOUS

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.tokens, self.heads * self.head_dim

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.tokens}x{self.heads}x{self.head_dim}"
        return "-".join([shape, str(self.parts), *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"heads": self.heads, "parts": self.parts}


@dataclass(frozen=True)
class PyramidCase:
    """The maps of a pyramid's levels (channels, side), what is done with them, what of CFSAM does it, and whether
    torch.compile takes part."""

    batch: int = 4
    memory_format: str = CONTIGUOUS
    work: str = FORWARD
    ablation: str = FULL
    levels: tuple[tuple[int, int], ...] = SSD_LEVELS
    dim: int = 256
    dtype: torch.dtype = torch.float32
    compiled: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tokens."""
        return self.batch, sum(side * side for _, side in self.levels), self.dim

    def __str__(self) -> str:
        parts = [f"{self.batch}x{self.shape[1]}x{self.dim}", self.ablation.replace(" ", ""), self.memory_format]
        return "-".join([*parts, *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        levels = [f"{channels}@{side}" for channels, side in self.levels]
        return case_facts(self) | {"levels": levels, "ablation": self.ablation}


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

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.dim, self.side, self.side

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.heads), self.contraction, self.memory_format]
        return "-".join([*parts, *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"heads": self.heads, "contraction": self.contraction}


@dataclass(frozen=True)
class AcpCase:
    """Maps (batch, dim, side, side), ACP's layers, what is done with them, and whether torch.compile takes part."""

    batch: int
    dim: int
    side: int
    layers: int = ACP_LAYERS
    work: str = FORWARD
    memory_format: str = CONTIGUOUS
    dtype: torch.dtype = torch.float32
    compiled: bool = True
    operation = "acp"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.dim, self.side, self.side

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.layers), self.memory_format]
        return "-".join([*parts, *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"layers": self.layers}


@dataclass(frozen=True)
class CatCase:
    """Tokens (batch, tokens, dim), CAT's concepts, what is done with them, and whether torch.compile takes part."""

    batch: int
    tokens: int
    concepts: int
    dim: int
    work: str = FORWARD
    dtype: torch.dtype = torch.float32
    compiled: bool = True
    memory_format = CONTIGUOUS
    operation = "cat"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.tokens, self.dim

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.concepts), *marked(self.dtype)]
        return "-".join([*parts, self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"concepts": self.concepts}


def case_facts(case: Case | AttentionCase | PyramidCase | LgaCase | AcpCase | CatCase) -> dict[str, object]:
    return {
        "work": case.work,
        "shape": list(case.shape),
        "dtype": name_of(case.dtype),
        "format": case.memory_format,
    }


@dataclass(frozen=True)
class ModelCase:
    """A whole model on photographs of its size, what is done with it, and whether torch.compile takes part; `levels`
    are those of a detector that the attention is on."""

    model: str
    batch: int = 8
    memory_format: str = CONTIGUOUS
    dtype: torch.dtype = torch.float32
    attention: str = "scsa"
    levels: str | None = None
    work: str = FORWARD
    compiled: bool = False

    @property
    def side(self) -> int:
        return 224 if self.levels is None else 300

    def __str__(self) -> str:
        parts = [self.model, str(self.batch), self.memory_format, *marked(self.dtype)]
        parts += [self.levels] if self.levels else []
        return "-".join(parts if self.work == FORWARD else [*parts, self.work.replace(" ", "")])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def marked(dtype: torch.dtype) -> list[str]:
    """Its part of a case's name: none for float32, the usual one."""
    return [] if dtype == torch.float32 else [name_of(dtype)]


def module_cases(selection: Selection) -> Iterator[Case]:
    shapes = {"smoke": SMOKE_SHAPES, "default": FIVE_SHAPES, "full": full_shapes()}[selection]
    dtypes = (torch.float32, torch.bfloat16) if selection == "full" else (torch.float32,)
    order = product(shapes, dtypes, MEMORY_FORMATS, WORKS)
    return (Case(*parts, compiled=selection != "default" or parts[0] in COMPILED_SHAPES) for parts in order)


def copy_cases(selection: Selection) -> Iterator[Case]:
    return (Case(COPY_SHAPE, memory_format=layout) for layout in MEMORY_FORMATS)


def precision_cases(selection: Selection) -> Iterator[Case]:
    shapes = SMOKE_SHAPES if selection == "smoke" else FIVE_SHAPES
    return (Case(shape, memory_format=layout) for shape, layout in product(shapes, MEMORY_FORMATS))


def model_cases(selection: Selection) -> Iterator[ModelCase]:
    if selection == "smoke":
        return iter([ModelCase("mobilenetv2_100", 2), ssd_case("all", 1)])
    batches = (1, 8, 32) if selection == "full" else (8,)
    backbones = (ModelCase(*parts) for parts in product(("resnet50", "mobilenetv2_100"), batches, MEMORY_FORMATS))
    detectors = [ssd_case("all", 4), *(ssd_case(levels, 1) for levels in POSITIONS[:2])]
    if selection != "full":
        return chain(backbones, detectors, (ModelCase(name, attention="interaction") for name in TRANSFORMERS))
    detectors = [ssd_case(*parts) for parts in product(POSITIONS, (1, 4), MEMORY_FORMATS)]
    order = product(("resnet18", "mobilenetv3_small_100"), (8,), MEMORY_FORMATS)
    with_lga = (ModelCase(*parts, attention="lga") for parts in order)
    with_interaction = (
        ModelCase(name, batch, attention="interaction", work=work, compiled=True)
        for name, batch, work in product(TRANSFORMERS, (1, 8), WORKS)
    )
    return chain(backbones, detectors, with_lga, with_interaction)


def ssd_case(levels: str, batch: int, memory_format: str = CONTIGUOUS) -> ModelCase:
    return ModelCase("ssd300_vgg16", batch, memory_format, attention="cfsam", levels=levels)


def attention_cases(selection: Selection) -> list[AttentionCase]:
    """Those of SSD300 in several parts, and in a full run long ones."""
    if selection == "smoke":
        return [AttentionCase(1, 40, 2, work) for work in WORKS]
    if selection == "default":
        return [*(AttentionCase(work=work) for work in WORKS), AttentionCase(1, parts=4)]
    short = [AttentionCase(batch, 1940, *parts) for batch, *parts in product((1, 4), (1, 2, 4), WORKS)]
    long = [AttentionCase(1, *parts) for parts in product((7760, LONG), (2, 4), WORKS)]
    return short + long


def pyramid_cases(selection: Selection) -> list[PyramidCase]:
    """CFSAM at SSD300's levels, and what its parts cost; by default torch.compile takes part in one case."""
    if selection == "smoke":
        return [PyramidCase(1, work=work, levels=SMOKE_LEVELS, dim=32) for work in WORKS]
    if selection == "full":
        return [PyramidCase(*parts) for parts in product((1, 4), MEMORY_FORMATS, WORKS, ABLATIONS)]
    asked = [PyramidCase(memory_format=layout, compiled=layout == CONTIGUOUS) for layout in MEMORY_FORMATS]
    ablations = [PyramidCase(1, ablation=ablation, compiled=False) for ablation in ABLATIONS]
    return [*asked, PyramidCase(1, work=TRAINING, compiled=False), *ablations]


def lga_cases(selection: Selection) -> list[LgaCase]:
    """LGA at its paper's shapes: forward and training, and forward as released."""
    asked = (PAPER, FORWARD), (PAPER, TRAINING), (RELEASED, FORWARD)
    if selection == "smoke":
        return [LgaCase(1, *SMOKE_LGA, *how) for how in asked]
    if selection == "default":
        order = product(asked, LGA_SIZES)
        return [LgaCase(LGA_BATCH, *size, *how, compiled=size in COMPILED_LGA) for how, size in order]
    every = product((1, LGA_BATCH, 32), LGA_SIZES, CONTRACTIONS, WORKS, MEMORY_FORMATS)
    return [LgaCase(batch, *size, *how) for batch, size, *how in every]


def acp_cases(selection: Selection) -> list[AcpCase]:
    """ACP forward and in training; there torch.compile, which takes its time, in a full run alone."""
    if selection == "smoke":
        return [AcpCase(1, *SMOKE_ACP, work=work, compiled=work == FORWARD) for work in WORKS]
    if selection == "default":
        order = product(WORKS, ACP_SIZES)
        return [AcpCase(ACP_BATCH, *size, work=work, compiled=work == FORWARD) for work, size in order]
    order = product(ACP_SIZES, (1, 2, 3, 4), WORKS, MEMORY_FORMATS)
    return [AcpCase(ACP_BATCH, *size, *how) for size, *how in order]


def cat_cases(selection: Selection) -> list[CatCase]:
    """CAT forward and in training; there torch.compile, which takes its time, in a full run alone."""
    if selection == "smoke":
        return [CatCase(1, *SMOKE_CAT, work, compiled=work == FORWARD) for work in WORKS]
    if selection == "default":
        order = product(WORKS, CAT_SIZES)
        return [CatCase(CAT_BATCH, *size, work, compiled=work == FORWARD) for work, size in order]
    order = product(CAT_TOKENS, CAT_CONCEPTS, WORKS)
    return [CatCase(CAT_BATCH, tokens, concepts, dim, work) for (tokens, dim), concepts, work in order]


def gpu_cases(batch: int, selection: Selection, *, tuned: bool = False) -> list[Case]:
    """SCSA on a GPU, what matters most first, since time may run out: forward and training in both formats; where
    the compiler tunes for minutes, one format as a whole."""
    if selection == "smoke":
        training = Case(GPU_SMOKE_SHAPE, torch.float32, CHANNELS_LAST, TRAINING)
        return [training] if tuned else [Case(GPU_SMOKE_SHAPE, torch.bfloat16), training]
    order = product(GPU_DTYPES, MEMORY_FORMATS, WORKS, STAGES)
    cases = [Case((batch, *stage), dtype, layout, work) for dtype, layout, work, stage in order]
    return cases if tuned else sorted(cases, key=lambda case: (GPU_DTYPES.index(case.dtype), WORKS.index(case.work)))


def gpu_model_cases(selection: Selection) -> list[ModelCase]:
    if selection == "smoke":
        return [ModelCase("resnet18", 2, dtype=torch.bfloat16)]
    order = product((GPU_BATCH, 128), GPU_DTYPES, MEMORY_FORMATS)
    return [ModelCase("resnet50", batch, layout, dtype) for batch, dtype, layout in order]


def gpu_cfsam_cases(selection: Selection) -> list[AttentionCase | PyramidCase]:
    """CFSAM on a GPU, what matters most first: its attention in several parts and long, then the module in both
    formats."""
    cases: list[AttentionCase | PyramidCase] = []
    if selection == "smoke":
        for dtype, layout, work in ((torch.bfloat16, CONTIGUOUS, FORWARD), (torch.float32, CHANNELS_LAST, TRAINING)):
            cases.append(AttentionCase(1, 40, work=work, dtype=dtype))
            cases.append(PyramidCase(1, layout, work, levels=SMOKE_LEVELS, dim=GPU_SMOKE_DIM, dtype=dtype))
        return cases
    sizes = (GPU_BATCH, 1940, 2), (GPU_BATCH, 1940, 1), (GPU_BATCH, 1940, 4), (1, LONG, 2)
    for dtype in GPU_DTYPES:
        cases += [AttentionCase(*size, work, dtype=dtype) for size, work in product(sizes, WORKS)]
        cases += [PyramidCase(GPU_BATCH, layout, work, dtype=dtype) for work, layout in product(WORKS, MEMORY_FORMATS)]
    return cases


def gpu_lga_cases(selection: Selection) -> list[LgaCase]:
    """LGA on a GPU, what matters most first: forward in both formats, as released, then training."""
    if selection == "smoke":
        training = LgaCase(1, *SMOKE_LGA, PAPER, TRAINING, CHANNELS_LAST)
        return [LgaCase(1, *SMOKE_LGA, RELEASED, dtype=torch.bfloat16), training]
    ways = [(PAPER, FORWARD, layout) for layout in MEMORY_FORMATS]
    ways += [(RELEASED, FORWARD, CONTIGUOUS), *((PAPER, TRAINING, layout) for layout in MEMORY_FORMATS)]
    order = product(GPU_DTYPES, ways, LGA_SIZES)
    return [LgaCase(GPU_BATCH, *size, *way, dtype) for dtype, way, size in order]


def gpu_interaction_cases(selection: Selection) -> list[AcpCase | CatCase]:
    """ACP and CAT on a GPU, what matters most first: forward, ACP in both formats, then training."""
    if selection == "smoke":
        acp = AcpCase(1, *SMOKE_ACP, work=TRAINING, memory_format=CHANNELS_LAST)
        return [CatCase(1, *SMOKE_CAT, dtype=torch.bfloat16), acp]
    cases: list[AcpCase | CatCase] = []
    for dtype, work in product(GPU_DTYPES, WORKS):
        order = product(MEMORY_FORMATS, ACP_SIZES)
        cases += [AcpCase(GPU_BATCH, *size, ACP_LAYERS, work, layout, dtype) for layout, size in order]
        cases += [CatCase(GPU_BATCH, *size, work, dtype) for size in CAT_SIZES]
    return cases


def full_shapes() -> tuple[Shape, ...]:
    return tuple((batch, *stage) for batch in (1, 8, 32) for stage in STAGES)
