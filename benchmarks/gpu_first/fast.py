"""Contests of this package with eager PyTorch, torch.compile and a copy, by launches and as a graph."""

from typing import Any

import torch

from fastattn.bench.devices import device

from ..contest import SMOKE_EFFORT, Effort
from ..gpu import (
    GpuContest,
    GpuInteractionContest,
    GpuLgaContest,
    GpuModelContest,
    GpuScsaContest,
    cfsam_contest,
)
from ..scene import COMPILE, COPY, EAGER, fast_backends, setting
from ..shapes import AcpCase, Case, CatCase, LgaCase, ModelCase
from .rows import TINY, contests

EFFORT = Effort(rounds=12, round_seconds=0.003, budget_seconds=2.0)


def enter(case: Any, effort: Effort) -> GpuContest:
    """The contest of a case."""
    if isinstance(case, Case):
        return GpuScsaContest(case, effort, device(), [EAGER, COMPILE, COPY, *fast_backends(device())])
    if isinstance(case, ModelCase):
        return GpuModelContest(case, effort, device())
    if isinstance(case, LgaCase):
        return GpuLgaContest(case, effort, device())
    if isinstance(case, AcpCase | CatCase):
        return GpuInteractionContest(case, effort, device())
    return cfsam_contest(case, effort, device())


def fast(contest: str) -> dict[str, Any]:
    """The records of a contest's rivals, and what kept others out."""
    found = enter((contests() | TINY)[contest], EFFORT if torch.cuda.is_available() else SMOKE_EFFORT)
    try:
        records = [found.record(name, found.suite) for name in found.timings]
    finally:
        found.close()
    failed = {**found.wrong, **found.broken, **found.late}
    ours = [name for name in failed if name.startswith(tuple(fast_backends(device())))]
    return {"ok": bool(records) and not ours, "records": records, **({"failed": failed} if failed else {})}


def warm(contest: str) -> dict[str, Any]:
    """Let torch.compile fill its cache on disk with what a contest will ask of it."""
    case = (contests() | TINY)[contest]
    scene, forward = compiled(case)
    with setting(case.work, COMPILE):
        scene.call(forward)()
    return {"ok": True}


def compiled(case: Any) -> tuple[Any, Any]:
    """The scene of a case, and what torch.compile makes of its reference."""
    from .. import interaction, lga, scsa

    if isinstance(case, Case):
        scene = scsa.scsa_scene(case, device().type)
        return scene, torch.compile(scsa.EagerSCSA(scene.module), dynamic=False)
    if isinstance(case, LgaCase):
        scene = lga.lga_scene(case, device().type)
        return scene, lga.lga_forward(scene, COMPILE)
    scene = interaction.interaction_scene(case, device().type)
    return scene, interaction.interaction_forward(scene, COMPILE)
