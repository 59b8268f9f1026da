"""The shapes that the benchmarks run, and which of them a selection takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import pytest
import torch

Shape = tuple[int, int, int, int]
Selection = Literal["smoke", "default", "full"]
SELECTION = pytest.StashKey[Selection]()  # in pytest's config: what was asked for

# (C, H, W) where SCSA sits in the four stages of ResNet-50 at 224 x 224.
STAGES = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
FIVE_SHAPES: tuple[Shape, ...] = (*((8, *stage) for stage in STAGES), (1, 64, 56, 56))
SMOKE_SHAPES: tuple[Shape, ...] = ((1, 64, 56, 56),)
COPY_SHAPE: Shape = (8, 256, 56, 56)
SAVED_SHAPE: Shape = (8, 64, 56, 56)
GPU_BATCH = 32
GPU_COPY_SHAPE: Shape = (256, 64, 56, 56)  # x and out together exceed the L2
GPU_SMOKE_SHAPE: Shape = (2, 16, 14, 14)

FORWARD, TRAINING = WORKS = ("forward", "forward + backward")
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
MEMORY_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
GPU_DTYPES = (torch.bfloat16, torch.float32)
LAUNCHES, GRAPH = "launches", "graph"  # how work reaches a GPU

# What a GPU runs, in parts that take minutes each: SCSA at a batch, the same against max-autotune, whole models.
PARTS = ("32", "256", "models", "32-tuned", "256-tuned")
PART = pytest.StashKey[str | None]()


@dataclass(frozen=True)
class Case:
    """One input of a module and what is done with it."""

    shape: Shape
    dtype: torch.dtype = torch.float32
    memory_format: str = CONTIGUOUS
    work: str = FORWARD

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), name_of(self.dtype), self.memory_format]
        return "-".join([*parts, self.work.replace(" ", "")])


@dataclass(frozen=True)
class ModelCase:
    """A whole model at 224 x 224 on photographs."""

    model: str
    batch: int = 8
    memory_format: str = CONTIGUOUS
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        other = "" if self.dtype == torch.float32 else f"-{name_of(self.dtype)}"
        return f"{self.model}-{self.batch}-{self.memory_format}{other}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def module_cases(selection: Selection) -> Iterator[Case]:
    shapes = {"smoke": SMOKE_SHAPES, "default": FIVE_SHAPES, "full": full_shapes()}[selection]
    dtypes = (torch.float32, torch.bfloat16) if selection == "full" else (torch.float32,)
    return (Case(*parts) for parts in product(shapes, dtypes, MEMORY_FORMATS, (FORWARD, TRAINING)))


def copy_cases(selection: Selection) -> Iterator[Case]:
    return (Case(COPY_SHAPE, memory_format=layout) for layout in MEMORY_FORMATS)


def precision_cases(selection: Selection) -> Iterator[Case]:
    shapes = SMOKE_SHAPES if selection == "smoke" else FIVE_SHAPES
    return (Case(shape, memory_format=layout) for shape, layout in product(shapes, MEMORY_FORMATS))


def model_cases(selection: Selection) -> Iterator[ModelCase]:
    if selection == "smoke":
        return iter([ModelCase("mobilenetv2_100", 2)])
    batches = (1, 8, 32) if selection == "full" else (8,)
    return (ModelCase(*parts) for parts in product(("resnet50", "mobilenetv2_100"), batches, MEMORY_FORMATS))


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


def full_shapes() -> tuple[Shape, ...]:
    return tuple((batch, *stage) for batch in (1, 8, 32) for stage in STAGES)
