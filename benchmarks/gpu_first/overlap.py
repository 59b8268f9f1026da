"""Launches that overlap (`kernels/common/chain.py`), which plans made anew ask for: their times, and the same bits."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from fastattn.bench.sizes import CONTIGUOUS

from .fast import fast
from .rows import OVERLAPPED


@contextmanager
def overlapping(overlaps: Callable[..., bool] | None = None) -> Iterator[None]:
    """Let launches overlap where they can, or where `overlaps`, of a kernel and its device, says."""
    from fastattn.kernels.common import chain

    forget()
    with patch.object(chain, "OVERLAP", True), patch.object(chain, "overlaps", overlaps or chain.overlaps):
        yield
    forget()


def forget() -> None:
    """Let every plan be made anew: its launches are compiled as they were first asked for."""
    for name in [name for name in sys.modules if name.startswith("fastattn.kernels.")]:
        for value in vars(sys.modules[name]).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def overlapped(contest: str) -> dict[str, Any]:
    """The milliseconds of this package in a contest, by launches and as a graph."""
    with overlapping():
        found = fast(contest)
    own = [record for record in found.pop("records") if record["rival"].startswith("triton")]
    return found | {"overlapped": {record["launch"]: record["median_ms"] for record in own}}


def same_bits() -> dict[str, Any]:
    """One operation of each family gives what it gives without."""
    from .right import build, run
    from .special import HALF, same

    results = {}
    for name in OVERLAPPED:
        module, inputs = build(name, HALF, CONTIGUOUS)
        wanted = run(module, inputs, "triton")
        with overlapping():
            found = [run(module, inputs, "triton") for _ in range(5)]
            torch.cuda.synchronize()
        results[name] = [same(each, wanted) for each in found]
    return {"ok": all(one["ok"] for each in results.values() for one in each), "operations": results}
