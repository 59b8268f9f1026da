"""LGA's rivals: eager and torch.compile of the reference, and fastattn's own backends, on the same tensors."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn import reference
from fastattn.bench.devices import Cpu

from .contest import Effort
from .scene import COMPILE, EAGER, Forward, Scene, SceneContest, fast_backends
from .shapes import FORWARD, MEMORY_FORMATS, PAPER, TRAINING, LgaCase

CPU = Cpu()
CHECKED_IMAGES = 1  # of a forward pass: float64 convolutions are slow; every image takes the same path
BUDGET = 5.0  # seconds of a case's rounds


class EagerLGA(nn.Module):
    """The reference on the parameters of an LGA module, without any dispatch."""

    def __init__(self, module: fastattn.LocalGlobalAttention):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        return reference.local_global_attention(
            x, *m.operands(), num_heads=m.num_heads, contraction=m.contraction
        )


class OnSome(EagerLGA):
    """The same on the first images alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:CHECKED_IMAGES])


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
    if case.work == FORWARD:
        return Scene(case, module, {"x": x}, [grad], OnSome, lambda out: out[:CHECKED_IMAGES])
    return Scene(case, module, {"x": x}, [grad], EagerLGA)


def lga_rivals(case: LgaCase, device: Cpu = CPU) -> list[str]:
    """Who takes part; torch.compile, which takes its time, in the paper's contraction where the case wants it."""
    compiled = case.compiled and case.contraction == PAPER
    return [EAGER, *([COMPILE] if compiled else []), *fast_backends(device, "lga")]


def lga_forward(scene: Scene, name: str) -> Forward:
    """What a rival calls."""
    module: Any = scene.module
    if name not in (EAGER, COMPILE):
        return module
    eager = EagerLGA(module)
    return torch.compile(eager, dynamic=False) if name == COMPILE else eager


class LgaContest(SceneContest):
    """LGA as a module."""

    operation = "lga"

    def __init__(self, case: LgaCase, effort: Effort):
        super().__init__()
        torch._dynamo.reset()  # the cases before count towards a limit of recompilations
        effort = replace(effort, budget_seconds=min(effort.budget_seconds, BUDGET))
        scene = lga_scene(case)
        for name in lga_rivals(case):
            self.enter(name, scene, lga_forward(scene, name), name)
        self.check_and_run(effort)
