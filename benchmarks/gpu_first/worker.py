"""A process that runs rows: one a line on standard input, one result a line on standard output."""

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any, TextIO

from .rows import Row

# where a task is not the module of its own name
MODULES = {"warm": "fast", "counters": "why", "sanitize": "why", "overlapped": "overlap", "same_bits": "overlap"}
MODULES |= dict.fromkeys(("raises", "dies", "hangs"), "failing")
TEXT = 3000  # characters of an error
BROKEN = "CUDA error", "Triton Error [CUDA]", "an illegal memory access", "CUDNN_STATUS", "CUBLAS_STATUS"


def prepare(device: str) -> None:
    """Full precision, on a device that the shared builders know."""
    os.environ["FASTATTN_TEST_DEVICE"] = device
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def poison(wanted: bool) -> None:
    """Let new memory hold NaN, so that an element that is not written shows."""
    import torch

    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch asks for it; read when CUDA starts
    torch.use_deterministic_algorithms(wanted, warn_only=True)


def perform(row: Row) -> dict[str, Any]:
    """What a row finds; an exception is a finding too."""
    began = time.perf_counter()
    try:
        poison(row.task in ("right", "special", "same_bits"))
        module = importlib.import_module(f".{MODULES.get(row.task, row.task)}", __package__)
        found = getattr(module, row.task)(**row.arguments)
    except Exception:
        text = traceback.format_exc()
        found = {"ok": False, "failed": text[-TEXT:], "broken": any(word in text for word in BROKEN)}
    return found | {"seconds": round(time.perf_counter() - began, 2)}


def serve(lines: TextIO, answers: TextIO) -> None:
    print("ready", file=answers, flush=True)
    for line in lines:
        print(json.dumps(perform(Row.parse(line))), file=answers, flush=True)


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed
    prepare(sys.argv[1])
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
