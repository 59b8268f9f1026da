"""SCSA's rivals: eager and torch.compile of the reference, and fastattn's own backends, on the same
tensors."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn import reference

from .contest import Effort
from .scene import COMPILE, COPY, EAGER, Scene, SceneContest, fast_backends
from .shapes import MEMORY_FORMATS, Case, name_of


class EagerSCSA(nn.Module):
    """The reference on the parameters of an SCSA module, without any dispatch: what eager and
    torch.compile run."""

    def __init__(self, module: fastattn.SCSA):
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


class BackendContest(SceneContest):
    """Eager, torch.compile of the reference with static shapes where the case wants it, and every fast backend."""

    def __init__(self, case: Case, effort: Effort):
        super().__init__()
        scene = scsa_scene(case)
        eager = EagerSCSA(scene.module)
        torch._dynamo.reset()  # the cases before count towards a limit of recompilations
        self.enter(EAGER, scene, eager, EAGER)
        if case.compiled:
            self.enter(COMPILE, scene, torch.compile(eager, dynamic=False), COMPILE)
        for backend in fast_backends(self.device):
            self.enter(backend, scene, scene.module, backend)
        self.check_and_run(effort)


class CopyContest(SceneContest):
    """Every fast backend against out.copy_(x), the least that touches as much memory."""

    def __init__(self, case: Case, effort: Effort):
        super().__init__()
        scene = scsa_scene(case)
        self.enter(COPY, scene, torch.empty_like(scene.inputs["x"]).copy_, COPY)
        for backend in fast_backends(self.device):
            self.enter(backend, scene, scene.module, backend)
        self.check_and_run(effort)


class PrecisionContest(SceneContest):
    """The same fast backend in float32 and in bfloat16."""

    def __init__(self, case: Case, effort: Effort):
        super().__init__()
        for dtype in (torch.float32, torch.bfloat16):
            scene = scsa_scene(replace(case, dtype=dtype))
            for backend in fast_backends(self.device)[:1]:
                self.enter(name_of(dtype), scene, scene.module, backend)
        self.check_and_run(effort)
