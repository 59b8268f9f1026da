"""Telemetry: a GPU's state through a fake NVML, a CPU's clocks from fake files, and what happens without either."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastattn.bench import machine, telemetry
from fastattn.bench.telemetry import watch

pytestmark = pytest.mark.cpu
IDLE, POWER_CAP, THERMAL = 0x1, 0x4, 0x40
MINE, OTHERS = os.getpid(), os.getpid() + 1


class NvmlError(Exception):
    """What pynvml raises."""


class FakeNvml:
    """A GPU whose answers are lists that are read one by one, the last one again and again."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        self.open, self.seen = 0, 0
        self.answers: dict[str, list[Any]] = {
            "sm": [1980],
            "memory": [2619],
            "Temperature": [40, 61, 50],
            "PowerUsage": [300_000, 500_000],
            "TotalEnergyConsumption": [1_000_000, 1_004_000],
            "CurrentClocksThrottleReasons": [0],
            "ComputeRunningProcesses": [[MINE]],
        }

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "1.2.3"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert self.open
        if uuid != "GPU-1234":
            raise NvmlError("Not Found")
        return uuid

    def answer(self, name: str) -> Any:
        assert self.open, "asked after the shutdown"
        given = self.answers[name]
        found = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(found, Exception):
            raise found
        return found

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return self.answer("sm" if kind == self.NVML_CLOCK_SM else "memory")

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        raise NvmlError("Not Supported")

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self.answer("Temperature")

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self.answer("PowerUsage")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.answer("TotalEnergyConsumption")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.answer("CurrentClocksThrottleReasons")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        pids = self.answer("ComputeRunningProcesses")
        self.seen += 1  # the last of a sample's queries
        return [SimpleNamespace(pid=pid) for pid in pids]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    yield fake
    assert fake.open == 0
    assert not watching()


def watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "telemetry"]


def wait(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.001)


def facts(nvml: FakeNvml, samples: int = 3, images: int | None = None) -> dict[str, Any]:
    with watch("cuda", interval=0.001) as seen:
        wait(lambda: nvml.seen >= samples)
    return seen.facts(images)


def test_a_gpus_state(nvml: FakeNvml) -> None:
    found = facts(nvml, images=8)
    power = found.pop("power_w")
    assert 300 < power <= 500
    assert found == {
        "sm_mhz": {"least": 1980, "median": 1980, "most": 1980},
        "memory_mhz": {"least": 2619, "median": 2619, "most": 2619},
        "temperature_c": {"most": 61},
        "energy_per_image_j": 0.5,
        "clock_reductions": [],
        "other_processes": 0,
    }


def test_clocks_that_moved_and_why(nvml: FakeNvml) -> None:
    nvml.answers["sm"] = [1980, 1500, 1700]
    nvml.answers["CurrentClocksThrottleReasons"] = [0, POWER_CAP, POWER_CAP | THERMAL, 0]
    found = facts(nvml, samples=4)
    assert (found["sm_mhz"]["least"], found["sm_mhz"]["most"]) == (1500, 1980)
    assert found["clock_reductions"] == ["software power cap", "hardware thermal slowdown"]


def test_clocks_of_an_idle_gpu_are_not_those_of_the_work(nvml: FakeNvml) -> None:
    nvml.answers |= {"sm": [210, 1980], "CurrentClocksThrottleReasons": [IDLE, 0]}
    found = facts(nvml)
    assert found["sm_mhz"]["least"] == 1980
    assert found["clock_reductions"] == []
    nvml.answers |= {"sm": [210], "CurrentClocksThrottleReasons": [IDLE]}
    assert facts(nvml)["sm_mhz"]["most"] == 210


def test_a_block_shorter_than_the_interval_is_sampled_once(nvml: FakeNvml) -> None:
    with watch("cuda", interval=60) as seen:
        pass
    assert nvml.seen == 1
    assert seen.facts()["temperature_c"] == {"most": 40}


@pytest.mark.parametrize(
    ("pids", "initialised", "others"),
    [
        ([[MINE], [MINE, OTHERS], [MINE]], True, 1),
        ([[MINE, OTHERS, OTHERS]], True, 1),
        ([[OTHERS]], True, 0),
        ([[OTHERS, OTHERS + 1]], True, 1),
        ([[OTHERS]], False, 1),
        ([[]], True, 0),
    ],
    ids=["for a while", "told twice", "a container's number", "and another", "before the first work", "not told"],
)
def test_other_processes(
    pids: list[list[int]], initialised: bool, others: int, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    nvml.answers["ComputeRunningProcesses"] = pids
    assert facts(nvml)["other_processes"] == others


@pytest.mark.parametrize(
    ("query", "missing"),
    [
        ("sm", "sm_mhz"),
        ("memory", "memory_mhz"),
        ("Temperature", "temperature_c"),
        ("PowerUsage", "power_w"),
        ("CurrentClocksThrottleReasons", "clock_reductions"),
        ("ComputeRunningProcesses", "other_processes"),
    ],
)
def test_a_query_that_is_refused_leaves_the_others(query: str, missing: str, nvml: FakeNvml) -> None:
    everything = facts(nvml, images=1).keys()
    nvml.answers[query] = [NvmlError("Not Supported")]
    with watch("cuda", interval=0.001) as seen:
        time.sleep(0.01)
    found = seen.facts(1)
    assert found.keys() == everything - {missing} | {"unavailable"}
    assert found["unavailable"] == f"{missing}: Not Supported"


def test_a_query_that_is_refused_once_is_not_missing(nvml: FakeNvml) -> None:
    nvml.answers["Temperature"] = [NvmlError("Unknown Error"), 50]
    found = facts(nvml)
    assert found["temperature_c"] == {"most": 50}
    assert "unavailable" not in found


def test_energy_without_a_counter_is_power_times_time(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.answers |= {"TotalEnergyConsumption": [NvmlError("Not Supported")], "PowerUsage": [200_000]}
    now = iter((10.0, 14.0))
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: next(now))
    with watch("cuda", interval=60) as seen:
        pass
    found = seen.facts(16)
    assert found["energy_per_image_j"] == pytest.approx(200 * 4 / 16)
    assert "unavailable" not in found


def test_energy_that_nothing_tells(nvml: FakeNvml) -> None:
    nvml.answers |= {query: [NvmlError("No Permission")] for query in ("TotalEnergyConsumption", "PowerUsage")}
    found = facts(nvml, images=4)
    assert not {"energy_per_image_j", "power_w"} & found.keys()
    assert found["unavailable"].count("No Permission") == 2


def test_a_query_that_this_version_does_not_know(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetTotalEnergyConsumption")
    assert facts(nvml, images=4)["energy_per_image_j"] > 0


def test_without_the_library(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with watch("cuda", interval=0.001) as seen:
        time.sleep(0.005)
    assert seen.facts(4) == {"unavailable": "nvidia-ml-py is missing: pip install 'fastattn[bench]'"}


def test_without_a_driver(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NvmlError("Driver Not Loaded")

    monkeypatch.setattr(nvml, "nvmlInit", fail)
    with watch("cuda") as seen:
        pass
    assert seen.facts() == {"unavailable": "Driver Not Loaded"}


def test_a_gpu_that_nvml_does_not_know(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="GPU-other"))
    with watch("cuda") as seen:
        pass
    assert seen.facts() == {"unavailable": "Not Found"}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_thread_stops_when_the_block_raises(device: str, nvml: FakeNvml) -> None:
    def fail() -> None:
        with watch(device, interval=0.001):
            [thread] = watching()
            assert thread.daemon
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not watching()


def test_driver_and_clocks_where_some_are_refused(nvml: FakeNvml) -> None:
    nvml.answers["memory"] = [NvmlError("Not Supported")]
    assert machine.query_driver() == {"driver": "1.2.3", "sm": 1980.0}


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system of four CPUs, of which this process may use three; no file tells a clock yet."""
    monkeypatch.setattr(telemetry, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(telemetry, "CPUFREQ", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 3}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return tmp_path


def write_cpuinfo(system: Path, *clocks: float) -> None:
    blocks = [f"processor\t: {cpu}\nmodel name\t: Fake CPU\ncpu MHz\t\t: {mhz}\n" for cpu, mhz in enumerate(clocks)]
    (system / "cpuinfo").write_text("\n".join(blocks))


def write_cpufreq(system: Path, **khz: int) -> None:
    for cpu, value in khz.items():
        (system / cpu / "cpufreq").mkdir(parents=True, exist_ok=True)
        (system / cpu / "cpufreq" / "scaling_cur_freq").write_text(f"{value}\n")


def test_a_cpus_clocks_are_those_of_the_cpus_that_work(system: Path) -> None:
    write_cpuinfo(system, 3000, 1000, 9999, 3200)
    assert telemetry.cpu_mhz() == 3100
    write_cpufreq(system, cpu0=2_000_000, cpu1=800_000)  # not all of them tell
    assert telemetry.cpu_mhz() == 3100
    write_cpufreq(system, cpu3=2_100_000)
    assert telemetry.cpu_mhz() == 2050


def test_a_cpus_clocks_over_time(system: Path) -> None:
    write_cpuinfo(system, 3000, 3000, 3000, 3000)
    with watch("cpu", interval=0.001) as seen:
        wait(lambda: 3000 in seen.samples)
        write_cpuinfo(system, 2000, 2000, 2000, 2000)
        wait(lambda: 2000 in seen.samples)
    found = seen.facts(images=7)
    assert found.keys() == {"cpu_mhz"}
    assert (found["cpu_mhz"]["least"], found["cpu_mhz"]["most"]) == (2000, 3000)
    with watch("cpu", interval=60) as seen:
        pass
    assert seen.facts() == {"cpu_mhz": {"least": 2000, "median": 2000, "most": 2000}}


@pytest.mark.parametrize(
    "text", [None, "processor\t: 0\nBogoMIPS\t: 50.00\n", "processor\t: 0\ncpu MHz\t: what\n"],
    ids=["no files", "another architecture", "unreadable"],
)  # fmt: skip
def test_a_system_that_does_not_tell_its_clocks(text: str | None, system: Path) -> None:
    if text:
        (system / "cpuinfo").write_text(text)
    with watch("cpu", interval=60) as seen:
        pass
    assert seen.facts() == {"unavailable": "cpu_mhz: the system does not tell"}
    assert machine.describe(memory_kept=True)["cpu_mhz"] is None


def test_the_machine_is_described_with_its_cpu(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_cpuinfo(system, 3000, 3000, 3000, 3000)
    described = machine.describe(memory_kept=True)
    assert (described["cpu"], described["threads"], described["cpu_mhz"]) == ("Fake CPU", 2, 3000)
    assert described["gpu"] is None
