"""Contests of this package with eager PyTorch, torch.compile and a copy, by launches and as a graph."""

from typing import Any

import torch

from fastattn.bench.contest import COMPILE, SMOKE_EFFORT, Effort, fast_backends
from fastattn.bench.devices import device
from fastattn.bench.scene import setting

from ..suites import SUITES
from .rows import TINY, contests

EFFORT = Effort(rounds=12, round_seconds=0.003, budget_seconds=2.0)


def fast(contest: str) -> dict[str, Any]:
    """The records of a contest's rivals, and what kept others out."""
    case = (contests() | TINY)[contest]
    found = SUITES[case.suite].hold(case, EFFORT if torch.cuda.is_available() else SMOKE_EFFORT, device())
    try:
        records = [found.record(name) for name in found.timings]
    finally:
        found.close()
    failed, backends = found.failed, tuple(fast_backends(SUITES[case.suite].operation or case.attention, device().type))
    ours = [name for name in failed if name.startswith(backends)]
    return {"ok": bool(records) and not ours, "records": records, **({"failed": failed} if failed else {})}


def warm(contest: str) -> dict[str, Any]:
    """Let torch.compile fill its cache on disk with what a contest will ask of it."""
    case = (contests() | TINY)[contest]
    suite = SUITES[case.suite]
    assert suite.scene is not None
    scene = suite.scene(case, device().type)
    with setting(case.work, COMPILE):
        scene.call(suite.forward(scene, COMPILE))()
    return {"ok": True}
