"""The machine a result comes from, and the versions that ran on it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fastattn
from fastattn import native

PACKAGES = ("torch", "triton", "timm", "torchvision", "numpy", "pytest-benchmark")


def describe(*, memory_kept: bool) -> dict[str, object]:
    """CPU, GPU, threads, instruction set of the native backend, versions; nothing that names the host."""
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": instruction_set(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"fastattn": fastattn.__version__}
        | {name: found for name in PACKAGES if (found := version_of(name))},
        "freed_memory": "kept by the process" if memory_kept else "handled as the C library likes",
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def instruction_set() -> str:
    """The level the compiled extension runs at, or why there is none."""
    state, _ = native.status()
    return native.extension().isa() if state == "ok" else state


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
