"""Whole models on photographs: plain, with an attention eager, compiled, with it by each fast backend; the same
weights for all. Of a detector it is backbone, attention and head: what decodes boxes behind them takes longer the more
a network finds, and one with random weights finds nothing of meaning."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from fastattn import models
from fastattn.bench.devices import Cpu
from fastattn.bench.interleave import Rival
from fastattn.bench.networks import Detector, answers, inference, prepare
from fastattn.bench.photographs import photographs

from .contest import Contest, Effort
from .measures import peak_bytes
from .scene import COMPILE, EAGER, Forward, fast_backends, setting
from .shapes import FORWARD, MEMORY_FORMATS, ModelCase

PLAIN = "plain"
CHECKED_IMAGES = 2  # float64 convolutions are slow; every image takes the same path


def create(case: ModelCase, attention: str | None) -> nn.Module:
    """The model of a case, with the same weights each time."""
    torch.manual_seed(0)
    if case.levels is None:
        return models.create(case.model, attention=attention)
    return Detector(models.create(case.model, attention=attention, num_classes=21, levels=case.levels))


def first(work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The answers for the images that are checked."""
    return {name: out[:CHECKED_IMAGES] for name, out in work().items()}


def model_rivals(case: ModelCase) -> list[str]:
    """Who takes part, first the model without attention; torch.compile where the case wants it."""
    return [PLAIN, EAGER, *([COMPILE] if case.compiled else []), *fast_backends(Cpu(), case.attention)]


def model_work(work: str, model: Forward, x: Tensor, leaves: list[nn.Parameter]) -> Callable[[], dict[str, Tensor]]:
    """What is timed: a model's answers, in training the gradients of its parameters too."""
    if work == FORWARD:
        return partial(answers, model, x)

    def train() -> dict[str, Tensor]:
        for leaf in leaves:
            leaf.grad = None
        found = answers(model, x)
        torch.autograd.backward(list(found.values()), [torch.ones_like(out) for out in found.values()])
        return found

    return train


class ModelContest(Contest):
    """One model, batch, memory format and work; of training the answers are checked, gradients by the tests."""

    def __init__(self, case: ModelCase, effort: Effort):
        super().__init__()
        self.case = case
        layout = MEMORY_FORMATS[case.memory_format]
        self.x = photographs(case.batch, case.side).contiguous(memory_format=layout)
        few = self.x[:CHECKED_IMAGES].contiguous(memory_format=layout)
        self.networks: dict[str | None, nn.Module] = {}
        plain, *others = model_rivals(case)
        for attention, names in ((None, [plain]), (case.attention, others)):
            model = prepare(create(case, attention), self.x).to(memory_format=layout)
            exact = deepcopy(model).double()
            with inference("reference"):
                truth, eager = answers(exact, few.double()), answers(model, few)
            self.networks[attention] = model
            for name in names:
                context = partial(setting, case.work, "reference" if name in (PLAIN, EAGER, COMPILE) else name)
                network = torch.compile(model, dynamic=False) if name == COMPILE else model
                work = model_work(case.work, network, self.x, list(model.parameters()))
                self.admit(Rival(name, work, context), partial(first, work), truth, eager)
        self.run(effort)

    def facts(self, name: str) -> dict[str, object]:
        model = self.networks[None if name == PLAIN else self.case.attention]
        with self.rivals[name].context():
            peak = peak_bytes(self.rivals[name].call)
        read_once = sum(p.numel() * p.element_size() for p in model.parameters())
        moved = self.x.numel() * self.x.element_size() + read_once
        seconds = self.timings[name].least
        return {
            "operation": self.case.attention,
            "work": self.case.work,
            "model": self.case.model,
            "attention": "none" if name == PLAIN else self.case.attention,
            "levels": self.case.levels,
            "shape": list(self.x.shape),
            "dtype": "float32",
            "format": self.case.memory_format,
            "backend": name,
            "images_per_s": self.case.batch / seconds,
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes_moved_at_least": moved,
            "gb_per_s": moved / seconds / 1e9,
            "peak_memory_bytes": peak,
            "saved_for_backward_bytes": None,
        }
