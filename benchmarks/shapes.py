"""What the cases of all suites share: which of them a selection takes, batches, and how they are named."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from fastattn.bench.sizes import name_of
from fastattn.bench.suite import Selection

SELECTION = pytest.StashKey[Selection]()  # in pytest's config: what was asked for
PART = pytest.StashKey[str | None]()  # of what a GPU runs

GPU_BATCH = 32
GPU_DTYPES = (torch.bfloat16, torch.float32)


def case_facts(case: Any) -> dict[str, object]:
    """What a result file says about a case of a module."""
    return {
        "work": case.work,
        "shape": list(case.shape),
        "dtype": name_of(case.dtype),
        "format": case.memory_format,
    }


def marked(dtype: torch.dtype) -> list[str]:
    """Its part of a case's name: none for float32, the usual one."""
    return [] if dtype == torch.float32 else [name_of(dtype)]


def paired(
    cases: Callable[[Selection], Iterable[Any]], suite: str | None = None
) -> Callable[[Selection], list[tuple[str, Any]]]:
    """The cases that a selection takes, each with the name of its suite."""
    return lambda selection: [(suite or case.suite, case) for case in cases(selection)]
