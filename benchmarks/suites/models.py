"""Whole models on photographs, on a GPU on noise: plain, with an attention eager, compiled, and by each fast backend;
the same weights for all."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import Any

import torch
from torch import nn

from fastattn import models
from fastattn.bench.contest import COMPILE, EAGER, PLAIN, fast_backends
from fastattn.bench.devices import Cpu
from fastattn.bench.measures import peak_bytes
from fastattn.bench.networks import CHECKED, Detector, answers, first, inference, prepare, work_on
from fastattn.bench.photographs import noise, photographs
from fastattn.bench.scene import setting
from fastattn.bench.sizes import CONTIGUOUS, FORWARD, MEMORY_FORMATS, WORKS, name_of
from fastattn.bench.suite import Selection, Suite, SuiteContest, Table, convolutions

from ..shapes import GPU_BATCH, GPU_DTYPES, marked, paired
from .cfsam import POSITIONS
from .interaction import TRANSFORMERS

CPU = Cpu()
WRITTEN = {"interaction": "ACP + CAT"}  # attentions that are not written in capitals alone


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
    suite = "model"

    @property
    def placed(self) -> str:
        """The attention in words, and the levels that it is on."""
        name = WRITTEN.get(self.attention, self.attention.upper())
        return f"{name} on {self.levels} levels" if self.levels else name

    @property
    def side(self) -> int:
        return 224 if self.levels is None else 300

    def __str__(self) -> str:
        parts = [self.model, str(self.batch), self.memory_format, *marked(self.dtype)]
        parts += [self.levels] if self.levels else []
        return "-".join(parts if self.work == FORWARD else [*parts, self.work.replace(" ", "")])


def create(case: ModelCase, attention: str | None) -> nn.Module:
    """The model of a case, with the same weights each time."""
    torch.manual_seed(0)
    if case.levels is None:
        return models.create(case.model, attention=attention)
    return Detector(models.create(case.model, attention=attention, num_classes=21, levels=case.levels))


def model_rivals(case: ModelCase, device: Cpu = CPU) -> list[str]:
    """Who takes part, first the model without attention; torch.compile where the case wants it."""
    return [PLAIN, EAGER, *([COMPILE] if case.compiled else []), *fast_backends(case.attention, device.type)]


class ModelContest(SuiteContest):
    """One model, batch, memory format and work; of training the answers are checked, gradients by the tests."""

    case: ModelCase

    def fill(self) -> None:
        self.held.enter_context(convolutions(tf32=True, search=True))  # as networks are run
        case, on_gpu = self.case, self.device.launches != Cpu.launches
        layout = MEMORY_FORMATS[case.memory_format]
        images = (noise if on_gpu else photographs)(case.batch, case.side).to(self.device.type)
        self.x = images.to(case.dtype).contiguous(memory_format=layout)
        few = self.x[:CHECKED].double().contiguous(memory_format=layout)
        self.networks: dict[str | None, nn.Module] = {}
        plain, *others = model_rivals(case, self.device)
        for attention, names in ((None, [plain]), (case.attention, others)):
            model = prepare(create(case, attention).to(self.device.type), images)
            model = self.networks[attention] = model.to(case.dtype).to(memory_format=layout)
            with inference("reference"):
                truth, eager = answers(deepcopy(model).double(), few), first(partial(answers, model, self.x))
            for name in names:
                context = partial(setting, case.work, "reference" if name in (PLAIN, EAGER, COMPILE) else name)
                network = torch.compile(model, dynamic=False) if name == COMPILE else model
                work = work_on(case.work, network, [self.x], list(model.parameters()))
                self.enter(name, work, partial(first, work), context, truth, eager)

    def facts(self, key: str) -> dict[str, Any]:
        case, (name, launch) = self.case, self.seats[key]
        model = self.networks[None if name == PLAIN else case.attention]
        found = {
            "operation": case.attention,
            "work": case.work,
            "model": case.model,
            "attention": "none" if name == PLAIN else case.attention,
            "placed": case.placed,
            "levels": case.levels,
            "shape": list(self.x.shape),
            "dtype": name_of(case.dtype),
            "format": case.memory_format,
            "images_per_s": case.batch / self.seconds(key),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        if launch is not None:
            return found | {"images": "noise"}
        with self.rivals[key].context():
            peak = peak_bytes(self.rivals[key].call)
        moved = sum(t.numel() * t.element_size() for t in (self.x, *model.parameters()))  # each read once
        return found | {
            "backend": name,
            "bytes_moved_at_least": moved,
            "gb_per_s": moved / self.seconds(key) / 1e9,
            "peak_memory_bytes": peak,
            "saved_for_backward_bytes": None,
        }


def model_cases(selection: Selection) -> Iterator[ModelCase]:
    if selection == "smoke":
        return iter([ModelCase("mobilenetv2_100", 2), ssd_case("all", 1)])
    batches = (1, 8, 32) if selection == "full" else (8,)
    backbones = (ModelCase(*parts) for parts in product(("resnet50", "mobilenetv2_100"), batches, MEMORY_FORMATS))
    detectors = [ssd_case(levels, 1) for levels in POSITIONS]
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


def gpu_model_cases(selection: Selection) -> list[ModelCase]:
    if selection == "smoke":
        return [ModelCase("resnet18", 2, dtype=torch.bfloat16)]
    order = product((GPU_BATCH, 128), GPU_DTYPES, MEMORY_FORMATS)
    return [ModelCase("resnet50", batch, layout, dtype) for batch, dtype, layout in order]


SUITES = (
    Suite(
        "model",
        "test_model",
        Table(
            "Whole models",
            {"model": "model", "attention": "placed", "batch": "shape.0", "format": "format"},
            options=("levels",),
            readme="all",
            models=True,
        ),
        model_cases,
        model_rivals,
        contest=ModelContest,
    ),
)
PARTS = {"models": paired(gpu_model_cases)}
