"""The machine: versions, clocks, what a copy and an empty launch take, and whether Triton's cache was found."""

import os
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
import triton.language as tl

from fastattn.bench.devices import device
from fastattn.bench.machine import describe

COPIES = {"25 MB": 25_000_000, "400 MB": 400_000_000}


@triton.jit
def empty_kernel(x):
    """Nothing."""


@triton.jit
def add_one_kernel(x, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i, mask=i < N) + 1, mask=i < N)


def look() -> dict[str, Any]:
    found: dict[str, Any] = {"ok": True, "machine": describe(memory_kept=False)}
    gpu, began = device(), time.perf_counter()
    x = torch.zeros(1000, device=gpu.type)
    add_one_kernel[(4,)](x, 1000, BLOCK=256)
    found |= {"ok": x.sum().item() == 1000, "compile_s": time.perf_counter() - began}
    found["triton_cache_entries"] = len(list(Path(triton.knobs.cache.dir).glob("*")))
    found["processes"] = len(os.sched_getaffinity(0))
    if gpu.stopwatch is None:
        return found
    for name, size in COPIES.items():
        source = torch.randn(size // 2, device=gpu.type).to(torch.bfloat16)
        target = torch.empty_like(source)
        seconds = []
        for _ in range(20):
            gpu.before_round()
            seconds.append(gpu.stopwatch(partial(target.copy_, source), 1))
        found[f"copy_{name}_gb_per_s"] = 2 * size / median(seconds) / 1e9
    empty_kernel[(1,)](x)
    calls = 200
    found["launch_us"] = min(gpu.stopwatch(lambda: empty_kernel[(1,)](x), calls) for _ in range(5)) / calls * 1e6

    def chain() -> None:
        for _ in range(calls):
            empty_kernel[(1,)](x)

    replay, _ = gpu.capture(chain)
    found["graph_launch_us"] = min(gpu.stopwatch(replay, 1) for _ in range(5)) / calls * 1e6
    return found
