"""The machine a result comes from, and the versions that ran on it."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import torch

import fastattn
from fastattn.core import native

from . import telemetry

PACKAGES = ("torch", "triton", "timm", "torchvision", "numpy", "pytest-benchmark", "nvidia-ml-py")
CLOCKS = ("sm", "memory")
_clocks: dict[str, list[float]] = {name: [] for name in CLOCKS}  # a GPU's in MHz, read after each contest


def describe(*, memory_kept: bool) -> dict[str, object]:
    """CPU and its clock, GPU, threads, instruction set of the native backend, versions; nothing that names the
    host."""
    return {
        "cpu": cpu_name(),
        "cpu_mhz": telemetry.cpu_mhz(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": instruction_set(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **({"gpu_details": gpu_details()} if torch.cuda.is_available() else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"fastattn": fastattn.__version__}
        | {name: found for name in PACKAGES if (found := version_of(name))},
        "freed_memory": "kept by the process" if memory_kept else "handled as the C library likes",
    }


def gpu_details() -> dict[str, object]:
    """Driver, clocks and sizes of the current GPU; what nobody here can tell is left out."""
    properties = torch.cuda.get_device_properties()
    known = query_driver()
    return {
        "driver": known.get("driver"),
        "cuda": torch.version.cuda,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "max_clocks_mhz": {name: known[f"max {name}"] for name in CLOCKS if f"max {name}" in known},
        "clocks_mhz": {name: median(seen) for name, seen in _clocks.items() if seen},
    }


def note_clocks() -> None:
    """Read the GPU's clocks; right after work, before it slows down."""
    known = query_driver()
    for name in CLOCKS:
        if name in known:
            _clocks[name].append(float(known[name]))


def query_driver() -> dict[str, str | float]:
    """The driver's version, and the GPU's clocks in MHz, now and at most; empty where neither NVML nor nvidia-smi
    can tell."""
    uuid = telemetry.gpu_uuid()
    for query in (query_nvml, query_smi):
        with suppress(Exception):  # not installed, or not allowed to
            return query(uuid)
    return {}


def query_nvml(uuid: str) -> dict[str, str | float]:
    with telemetry.Nvml(uuid) as gpu:
        most = {f"max {name}": mhz for name, mhz in gpu.clocks("MaxClockInfo").items()}
        return {"driver": gpu.library.nvmlSystemGetDriverVersion()} | gpu.clocks() | most


def query_smi(uuid: str) -> dict[str, str | float]:
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem"
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    driver, *clocks = (value.strip() for value in answer.split(","))
    named = zip(("sm", "max sm", "memory", "max memory"), clocks, strict=True)
    return {"driver": driver} | {name: float(mhz) for name, mhz in named if mhz.isdigit()}  # not "[N/A]"


def cpu_name() -> str:
    try:
        lines = telemetry.CPUINFO.read_text().splitlines()
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
