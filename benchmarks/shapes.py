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

FORWARD, TRAINING = "forward", "forward + backward"
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
MEMORY_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


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

    def __str__(self) -> str:
        return f"{self.model}-{self.batch}-{self.memory_format}"


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


def full_shapes() -> tuple[Shape, ...]:
    return tuple((batch, *stage) for batch in (1, 8, 32) for stage in STAGES)
