"""The rivals of ACP and CAT: eager and torch.compile of the reference, torch's own operators rearranged by the algebra,
and fastattn's own backends, on the same tensors."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn import reference
from fastattn.bench.devices import Cpu
from fastattn.interaction.acp import operation as acp
from fastattn.interaction.cat import operation as cat

from .contest import Effort
from .scene import COMPILE, EAGER, Forward, Scene, SceneContest, fast_backends
from .shapes import FORWARD, MEMORY_FORMATS, AcpCase, CatCase

CPU = Cpu()
COMPOSED = "composed"
CHECKED_IMAGES = 1  # of a forward pass: float64 convolutions are slow; every image takes the same path
BUDGET = 3.0  # seconds of a case's rounds


class Eager(nn.Module):
    """The reference on the parameters of a module, without any dispatch."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        if m.operation == "cat":
            return reference.conceptual_attention(x, *m.operands())
        return reference.aggressive_conv_pooling(x, *m.operands(), pool_size=m.pool_size, aggregate=m.aggregate)


class OnSome(Eager):
    """The same on the first images alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:CHECKED_IMAGES])


class Composed(Eager):
    """The reference's algebra, by torch's own operators."""

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        if m.operation == "cat":
            score, value, out = m.operands()
            return cat.compose(x, (score, *value, *out))
        return acp.compose(x, *m.operands(), m.pool_size)


def coarse(tensor: Tensor, step: float) -> Tensor:
    """The nearest multiples of a step."""
    return (tensor / step).round() * step


def make(case: AcpCase | CatCase) -> tuple[nn.Module, Tensor]:
    """A fresh module and its x.

    ACP's numbers are so coarse that no convolution rounds in float32: where two pixels of a window differ by a
    rounding, their gradient may go to either.
    """
    torch.manual_seed(0)
    if isinstance(case, CatCase):
        return fastattn.ConceptualAttention(case.dim, case.concepts), torch.randn(case.shape)
    module = fastattn.AggressiveConvPooling(case.dim, case.layers)
    with torch.no_grad():
        for parameter in module.convs.parameters():
            parameter.copy_(coarse(parameter, 2**-4))
    return module, coarse(torch.randn(case.shape), 2**-3)


def interaction_scene(case: AcpCase | CatCase, device: str = "cpu") -> Scene:
    """A module, its x, and the gradient of out; of a forward pass the first images are checked."""
    module, x = make(case)
    grad = torch.randn(case.shape)
    layout = MEMORY_FORMATS[case.memory_format]
    x, grad = (t.to(device, case.dtype) for t in (x, grad))
    module.to(device, case.dtype)
    if isinstance(case, AcpCase):
        module.to(memory_format=layout)
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    if case.work == FORWARD:
        return Scene(case, module, {"x": x}, [grad], OnSome, lambda out: out[:CHECKED_IMAGES])
    return Scene(case, module, {"x": x}, [grad], Eager)


def interaction_rivals(case: AcpCase | CatCase, device: Cpu = CPU) -> list[str]:
    """Who takes part; torch.compile, which takes its time, where the case wants it."""
    compiled = [COMPILE] if case.compiled else []
    composed = [COMPOSED] if device.type == "cpu" else []
    return [EAGER, *compiled, *composed, *fast_backends(device, case.operation)]


def interaction_forward(scene: Scene, name: str) -> Forward:
    """What a rival calls."""
    if name == COMPOSED:
        return Composed(scene.module)
    eager = Eager(scene.module)
    if name == COMPILE:
        return torch.compile(eager, dynamic=False)
    return eager if name == EAGER else scene.module


class InteractionContest(SceneContest):
    """ACP or CAT as a module."""

    def __init__(self, case: AcpCase | CatCase, effort: Effort):
        super().__init__()
        self.operation = case.operation
        torch._dynamo.reset()  # the cases before count towards a limit of recompilations
        effort = replace(effort, budget_seconds=min(effort.budget_seconds, BUDGET))
        scene = interaction_scene(case)
        for name in interaction_rivals(case):
            self.enter(name, scene, interaction_forward(scene, name), name)
        self.check_and_run(effort)
