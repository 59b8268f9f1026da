"""Whole models on photographs: plain, with SCSA eager, with SCSA by each fast backend; the same weights
for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

import fastattn
from fastattn import models

from .contest import Contest, Effort
from .interleave import Rival
from .measures import peak_bytes
from .photographs import photographs
from .scsa import EAGER, fast_backends
from .shapes import FORWARD, MEMORY_FORMATS, ModelCase

PLAIN = "plain"
CHECKED_IMAGES = 2  # float64 convolutions are slow; every image takes the same path


@contextmanager
def inference(backend: str) -> Iterator[None]:
    with torch.no_grad(), fastattn.use_backend(backend):
        yield


def prepare(model: nn.Module, x: Tensor) -> nn.Module:
    """Give a fresh model the activations of a trained one: random scales in its normalisations, so that
    every block shows in the output, and running statistics of the photographs."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        norm.momentum = 1.0
    with inference("reference"):
        model.train()(x)
    return model.eval()


def answers(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"logits": model(x)}


class ModelContest(Contest):
    """One model, batch and memory format."""

    def __init__(self, case: ModelCase, effort: Effort):
        super().__init__()
        self.case = case
        layout = MEMORY_FORMATS[case.memory_format]
        self.x = photographs(case.batch).contiguous(memory_format=layout)
        few = self.x[:CHECKED_IMAGES].contiguous(memory_format=layout)
        self.networks: dict[str | None, nn.Module] = {}
        for attention in (None, "scsa"):
            torch.manual_seed(0)
            model = prepare(models.create(case.model, attention=attention), self.x).to(memory_format=layout)
            exact = deepcopy(model).double()
            with inference("reference"):
                truth, eager = answers(exact, few.double()), answers(model, few)
            self.networks[attention] = model
            names = [PLAIN] if attention is None else [EAGER, *fast_backends()]
            for name in names:
                context = partial(inference, "reference" if name in (PLAIN, EAGER) else name)
                rival = Rival(name, partial(model, self.x), context)
                self.admit(rival, partial(answers, model, few), truth, eager)
        self.run(effort)

    def facts(self, name: str) -> dict[str, object]:
        model = self.networks[None if name == PLAIN else "scsa"]
        with self.rivals[name].context():
            peak = peak_bytes(self.rivals[name].call)
        read_once = sum(p.numel() * p.element_size() for p in model.parameters())
        moved = self.x.numel() * self.x.element_size() + read_once
        seconds = self.timings[name].least
        return {
            "operation": "scsa",
            "work": FORWARD,
            "model": self.case.model,
            "attention": "none" if name == PLAIN else "scsa",
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
