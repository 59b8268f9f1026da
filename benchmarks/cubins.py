"""What NVRTC makes of the CUDA kernels, for GPUs that need not be here: rows of `python -m benchmarks.machine_code`."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any
from unittest.mock import patch

import torch

import fastattn
from fastattn.bench.sizes import MEMORY_FORMATS, name_of
from fastattn.core.cuda import Device, Kernel
from fastattn.report import Table
from fastattn.scsa import cuda as scsa
from fastattn.scsa.operation import SCSA

from .gpus import GPUS
from .machine_code import WORKS, Code, by_compilation, by_width, read
from .suites.scsa import Case


@dataclass(frozen=True)
class Build:
    """A kernel for one architecture, in blocks of so many threads and bytes of dynamic shared memory."""

    kernel: Kernel
    arch: int
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class Launch:
    """What a pass launches."""

    case: Case
    work: str
    build: Build
    cluster: int


def launches(cases: Iterable[Case], archs: Iterable[int], works: Iterable[str] = WORKS) -> list[Launch]:
    """The launches of these passes of SCSA on a GPU of each architecture."""
    found = [launch for arch, case in product(archs, cases) for launch in of_case(case, arch)]
    return [launch for launch in found if launch.work in works]


def of_case(case: Case, arch: int) -> Iterator[Launch]:
    """The launches of both passes."""
    module: Any = fastattn.SCSA(case.shape[1]).to(case.dtype)
    options = module.head_num, module.window_size, module.down_sample_mode, module.gate_layer
    x = torch.empty(case.shape, dtype=case.dtype).contiguous(memory_format=MEMORY_FORMATS[case.memory_format])
    params = [parameter.detach() for parameter in module._params()]
    with noted(GPUS[arch]) as forward:
        out, saved = scsa.forward(SCSA, x, params, options, case.dtype, True)
    with noted(GPUS[arch]) as backward:
        scsa.backward(SCSA, out, x, saved, params, options, True, True)
    for work, made in zip(WORKS, (forward, backward), strict=True):
        for build, cluster in made:
            yield Launch(case, work, build, cluster)


@contextmanager
def noted(device: Device) -> Iterator[list[tuple[Build, int]]]:
    """Launch nothing: note what would be launched on a device, with the blocks of a cluster."""
    made: list[tuple[Build, int]] = []

    def note(self: Kernel, _: Any, grid: int, block: int, cluster: int, shared_bytes: int, *rest: Any, **more: Any):
        made.append((Build(self, device.capability, block, shared_bytes), cluster))

    def occupancy(self: Kernel, _: Any, block: int, shared_bytes: int, cluster: int) -> int:
        return device.processors // cluster

    with ExitStack() as held:
        held.enter_context(patch.object(scsa, "device_facts", lambda _: device))
        for name, function in (("launch", note), ("occupancy", occupancy)):
            held.enter_context(patch.object(Kernel, name, function))
        forget()
        held.callback(forget)
        yield made


def forget() -> None:
    """Let plans be made anew."""
    for value in vars(scsa).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def build(what: Build) -> Code:
    """Compile a kernel and read its machine code; what goes wrong is said in the result."""
    try:
        return read(what.kernel.cubin(what.arch), what.kernel.name, what.shared_bytes, what.arch, what.threads // 32)
    except Exception as error:  # reported with the others
        lines = str(error).strip().splitlines()
        return Code(error=next((line for line in lines if "error" in line), lines[0]))


def build_all(found: Iterable[Launch], jobs: int | None = None) -> dict[Build, Code]:
    """Build each distinct one once, on all cores."""
    return by_compilation(build, (launch.build for launch in found), jobs)


def tables(found: Sequence[Launch], codes: dict[Build, Code]) -> Iterator[Table]:
    """One table for each architecture, dtype, format and shape."""
    columns = ("pass", "kernel", "cluster", "threads", "registers", "spilled", "static", "dynamic", "occupancy")
    for (arch, case), group in groupby(found, lambda launch: (launch.build.arch, launch.case)):
        title = f"cuda, sm_{arch}, {name_of(case.dtype)}, {case.memory_format}, {case.shape}"
        rows = [tuple(cells(launch, codes[launch.build])) for launch in group]
        yield Table(title, (*columns, "loads", "stores", "generic"), rows)


def cells(launch: Launch, code: Code) -> list[str]:
    start = [launch.work, launch.build.kernel.name, str(launch.cluster), str(launch.build.threads)]
    if code.error:
        return [*start, *["-"] * 7, code.error]
    dynamic = launch.build.shared_bytes
    sizes = code.registers, code.spilled or code.stack, code.shared - dynamic, dynamic
    widths = by_width(code.loads), by_width(code.stores)
    return [*start, *map(str, sizes), f"{code.occupancy:.0%}", *widths, str(code.generic)]
