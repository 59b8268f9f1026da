"""What the device did while something was measured: clocks, temperature, power, and who else was there.

A GPU is asked through NVML (nvidia-ml-py, imported when needed), a CPU's clocks are read from the system. What cannot
be read is left out, with its reason.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

IDLE = 0x1
# NVML's bits, by their documentation
REDUCTIONS = {
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "synchronised boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
CPUINFO = Path("/proc/cpuinfo")
CPUFREQ = Path("/sys/devices/system/cpu")


def gpu_uuid() -> str:
    """The current GPU's identifier: NVML does not heed CUDA_VISIBLE_DEVICES, so that its index would be another's."""
    return "GPU-" + str(torch.cuda.get_device_properties().uuid).removeprefix("GPU-")


class Nvml:
    """One GPU through NVML, as a context; entering it raises ImportError without nvidia-ml-py, and what NVML raises
    without a driver."""

    def __init__(self, uuid: str):
        self.uuid = uuid
        self.refused: dict[str, str] = {}  # what could not be told, and why

    def __enter__(self) -> "Nvml":
        try:
            import pynvml
        except ImportError as error:
            raise ImportError("nvidia-ml-py is missing: pip install 'fastattn[bench]'") from error
        self.library = pynvml
        pynvml.nvmlInit()
        try:
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except Exception:
            pynvml.nvmlShutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.library.nvmlShutdown()

    def ask(self, what: str, query: str, *arguments: object) -> Any:
        """Return the answer to `nvmlDeviceGet<query>`; None where it is refused, which is noted under `what`."""
        try:
            return getattr(self.library, f"nvmlDeviceGet{query}")(self.handle, *arguments)
        except Exception as error:  # not supported, no permission, or unknown to this version
            self.refused[what] = str(error)
            return None

    def clocks(self, query: str = "ClockInfo") -> dict[str, float]:
        """Return the clocks of the multiprocessors and of the memory in MHz, as far as they are told."""
        kinds = {"sm": self.library.NVML_CLOCK_SM, "memory": self.library.NVML_CLOCK_MEM}
        found = {name: self.ask(f"{name}_mhz", query, kind) for name, kind in kinds.items()}
        return {name: float(mhz) for name, mhz in found.items() if mhz is not None}


class CpuTelemetry:
    """A CPU's clocks while it was watched."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    def start(self) -> None:
        """Begin to watch."""

    def sample(self) -> None:
        """Read what changes."""
        if (mhz := cpu_mhz()) is not None:
            self.samples.append(mhz)

    def stop(self) -> None:
        """Have watched; of a short block that is the one reading."""
        if not self.samples:
            self.sample()

    def facts(self, images: int | None = None) -> dict[str, Any]:
        """Return what was seen: `cpu_mhz`, or why not (`unavailable`)."""
        if not self.samples:
            return {"unavailable": "cpu_mhz: the system does not tell"}
        return {"cpu_mhz": spread(self.samples)}


class GpuTelemetry:
    """A GPU's state while it was watched."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []  # what was told, by the names of the facts
        self.energy_j: float | None = None
        self.seconds = 0.0
        self.gpu: Nvml | None = None
        self.unavailable: str | None = None

    def start(self) -> None:
        """Begin to watch."""
        try:
            self.gpu = Nvml(gpu_uuid()).__enter__()
        except Exception as error:  # no nvidia-ml-py, no driver, a GPU that NVML does not know
            self.unavailable = str(error) or type(error).__name__
            return
        self.energy_before = self.energy_mj()
        self.began = time.perf_counter()

    def energy_mj(self) -> int | None:
        assert self.gpu
        return self.gpu.ask("energy_per_image_j", "TotalEnergyConsumption")

    def sample(self) -> None:
        """Read what changes."""
        if self.gpu is None:
            return
        milliwatts = self.gpu.ask("power_w", "PowerUsage")
        processes = self.gpu.ask("other_processes", "ComputeRunningProcesses")
        told = {f"{name}_mhz": mhz for name, mhz in self.gpu.clocks().items()} | {
            "temperature_c": self.gpu.ask("temperature_c", "Temperature", self.gpu.library.NVML_TEMPERATURE_GPU),
            "power_w": None if milliwatts is None else milliwatts / 1e3,
            "clock_reductions": self.gpu.ask("clock_reductions", "CurrentClocksThrottleReasons"),  # bits
            "other_processes": None if processes is None else count_others([each.pid for each in processes]),
        }
        self.samples.append({name: value for name, value in told.items() if value is not None})

    def stop(self) -> None:
        """Have watched; of a short block there is one sample."""
        if self.gpu is None:
            return
        self.seconds = time.perf_counter() - self.began
        energy = self.energy_mj()
        if energy is not None and self.energy_before is not None:
            self.energy_j = (energy - self.energy_before) / 1e3
        if not self.samples:
            self.sample()
        self.gpu.__exit__()

    def told(self, name: str) -> list[Any]:
        return [sample[name] for sample in self.samples if name in sample]

    def facts(self, images: int | None = None) -> dict[str, Any]:
        """Return what was seen, and under `unavailable` why something was not; energy where `images` are counted.

        Clocks are those of samples in which the GPU worked, where it did.
        """
        if self.gpu is None:
            return {"unavailable": self.unavailable}
        found: dict[str, Any] = {}
        working = [sample for sample in self.samples if not sample.get("clock_reductions", 0) & IDLE]
        for name in ("sm_mhz", "memory_mhz"):
            clocks = [sample[name] for sample in working or self.samples if name in sample]
            if clocks:
                found[name] = spread(clocks)
        if celsius := self.told("temperature_c"):
            found["temperature_c"] = {"most": max(celsius)}
        watts, energy = self.told("power_w"), self.energy_j
        if watts:
            found["power_w"] = mean(watts)
            energy = mean(watts) * self.seconds if energy is None else energy
        if images and energy is not None:
            found["energy_per_image_j"] = energy / images
        if reasons := self.told("clock_reductions"):
            found["clock_reductions"] = [name for bit, name in REDUCTIONS.items() if any(r & bit for r in reasons)]
        if others := self.told("other_processes"):
            found["other_processes"] = max(others)
        wanted = {*self.gpu.refused} - found.keys() - ({"energy_per_image_j"} if not images else set())
        refused = [f"{name}: {why}" for name, why in self.gpu.refused.items() if name in wanted]
        return found | ({"unavailable": "; ".join(refused)} if refused else {})


@contextmanager
def watch(device_type: str, interval: float = 0.1) -> Iterator[CpuTelemetry | GpuTelemetry]:
    """Read the current GPU's ("cuda") or the CPU's state every `interval` seconds while the block runs, in a thread;
    `facts` of what it gives are known behind the block."""
    seen = GpuTelemetry() if device_type == "cuda" else CpuTelemetry()
    over = threading.Event()

    def sample() -> None:
        while not over.wait(interval):
            seen.sample()

    thread = threading.Thread(target=sample, name="telemetry", daemon=True)
    seen.start()
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        seen.stop()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"least": min(values), "median": median(values), "most": max(values)}


def count_others(pids: Sequence[int]) -> int:
    """How many of the processes that compute on the GPU are not this one, which in a container has another number."""
    others = set(pids) - {os.getpid()}
    hidden = len(others) == len(set(pids)) and torch.cuda.is_initialized()
    return max(0, len(others) - hidden)


def cpu_mhz() -> float | None:
    """The mean clock of as many of the CPUs that this process may use as it has threads, the fastest; None where
    neither cpufreq nor /proc/cpuinfo tells."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    clocks = _from_cpufreq(allowed) or _from_cpuinfo(allowed)
    return mean(sorted(clocks)[-torch.get_num_threads() :]) if clocks else None


def _from_cpufreq(cpus: Iterable[int]) -> list[float]:
    try:
        return [int((CPUFREQ / f"cpu{cpu}/cpufreq/scaling_cur_freq").read_text()) / 1e3 for cpu in cpus]
    except (OSError, ValueError):
        return []


def _from_cpuinfo(cpus: Iterable[int]) -> list[float]:
    try:
        pairs = [line.partition(":")[::2] for line in CPUINFO.read_text().splitlines()]
        numbers = [int(value) for key, value in pairs if key.strip() == "processor"]
        clocks = [float(value) for key, value in pairs if key.strip() == "cpu MHz"]
    except (OSError, ValueError):
        return []
    known = dict(zip(numbers, clocks, strict=False))  # without clocks on other architectures than x86
    return [known[cpu] for cpu in cpus if cpu in known]
