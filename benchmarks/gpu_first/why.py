"""What bounds SCSA's kernels, by the hardware's counters, and whether a sanitizer finds a fault in any kernel."""

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

import fastattn
from fastattn.bench.sizes import TRAINING

from ..suites.scsa import Case, scsa_scene
from .right import REPEATS, build, run

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "dram_read",
    "dram__bytes_write.sum": "dram_written",
    "lts__t_bytes.sum": "l2_bytes",
    "smsp__inst_executed.sum": "warp_instructions",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_pct",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue_pct",
}
NCU = "--clock-control", "none", "--profile-from-start", "off", "--print-units", "base", "--csv"


def tool(name: str) -> str:
    """Where one of CUDA's tools is; RuntimeError where it is not."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise RuntimeError(f"{name} is not installed")
    return found


def alone(task: str, *arguments: str) -> list[str]:
    """The command of a task that a tool watches."""
    return [sys.executable, "-m", "benchmarks.gpu_first.why", task, *arguments]


def counters(shape: Sequence[int], backend: str = "triton") -> dict[str, Any]:
    """Of each kernel of one training step of SCSA in bfloat16, contiguous."""
    command = [tool("ncu"), *NCU, "--metrics", ",".join(METRICS), *alone("step", backend, *map(str, shape))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or not lines:
        return {"ok": False, "said": (done.stdout + done.stderr)[-1500:]}
    kernels: dict[str, dict[str, Any]] = {}
    for line in csv.DictReader(lines):
        if name := METRICS.get(line["Metric Name"]):
            kernel = kernels.setdefault(f"{line['ID']} {line['Kernel Name']}", {"grid": line["Grid Size"]})
            kernel[name] = float(line["Metric Value"].replace(",", ""))
    return {"ok": True, "kernels": kernels}


def sanitize(tool: str, module: str, backend: str = "triton") -> dict[str, Any]:
    """Whether memcheck or racecheck finds a fault in a module's kernels."""
    find = globals()["tool"]
    command = [find("compute-sanitizer"), "--tool", tool, "--error-exitcode", "9", *alone("small", backend, module)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=95, env=environment)
    said = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    if done.returncode == 9 and tool == "racecheck" and not races(said):
        return {"ok": True, "said": [said[-1], "all of them replicas of one value, written by one instruction"]}
    if done.returncode == 0:
        return {"ok": True, "said": said[-1:]}
    return {"ok": False, "said": [*said[-20:], done.stderr[-800:]]}


def races(said: Sequence[str]) -> list[str]:
    """The hazards that racecheck reports between two instructions.

    A tile that is smaller than a block lies in several threads, all of which write its one value when its layout is
    changed: an instruction is not in a race with itself.
    """
    found, reported = [], re.compile(r"(Read|Write) access at (\S+) in")
    for first, second in pairwise(said):
        both = reported.search(first), reported.search(second)
        if "Race reported" in first and not (both[0] and both[1] and both[0].groups() == both[1].groups()):
            found.append(first)
    return found


def step(backend: str, *shape: str) -> None:
    """One training step between the profiler's marks."""
    batch, channels, height, width = map(int, shape)
    scene = scsa_scene(Case((batch, channels, height, width), torch.bfloat16, work=TRAINING), "cuda")
    call = scene.call(scene.module)
    with fastattn.use_backend(backend):
        for _ in range(REPEATS):
            call()
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
        call()
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()


def small(backend: str, module: str) -> None:
    """Forward and backward of a module's kernels."""
    built, inputs = build(module, torch.float32, "contiguous")
    run(built, [x[:1].contiguous() for x in inputs], backend)
    torch.cuda.synchronize()


if __name__ == "__main__":
    os.environ["FASTATTN_TEST_DEVICE"] = "cuda"
    works: dict[str, Callable[..., None]] = {"step": step, "small": small}
    works[sys.argv[1]](*sys.argv[2:])
