"""The CUDA kernels on the CPU: `csrc/cuda/host` lets a C++ compiler build them, and runs a thread as a fibre."""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpus import GPUS
from fastattn.core import backends
from fastattn.core.cuda import Device
from fastattn.scsa import cuda as scsa

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
SANITIZE = os.environ.get("FASTATTN_SANITIZE")  # address or thread: what the kernels are built with
_TYPES = ("X_TYPE", "PARAM_TYPE", "OUT_TYPE")
FLOATS = tuple((name, "float") for name in _TYPES)
_FIXED = (*_TYPES, "THREADS", "BLOCKS")  # what a build is for, or what a launch says


def compiler() -> str | None:
    """Return the C++ compiler, if there is one."""
    return os.environ.get("CXX") or shutil.which("c++")


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fastattn-emulated-"))


@functools.cache
def library(source: str, types: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    """Build a source for one choice of types; all other definitions are variables of it."""
    path = _folder() / f"{source.replace('/', '-')}-{'-'.join(value for _, value in types)}.so"
    flags = [f"-fsanitize={SANITIZE}", "-g1"] if SANITIZE else []
    defined = [f"-D{name}={value}" for name, value in types]
    command = [compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    command += [
        *flags,
        "-DFASTATTN_EMULATOR",
        f"-I{SOURCES}",
        *defined,
        "-x",
        "c++",
        str(SOURCES / source),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True, timeout=300)
    return ctypes.CDLL(str(path))


@dataclass
class Machine:
    """The GPU that is emulated, and what launches on it do."""

    facts: Device
    threads: int = 64  # of a block, in place of the plan's
    resident: int = 4  # blocks, or clusters
    without: int = 0  # the barrier that is left out
    checked: bool = False  # whether what a launch touches is checked and counted
    regions: tuple[torch.Tensor, ...] = ()  # what the next launch was given
    launches: int = 0
    bytes: int = 0  # distinct ones of each block, of all launches
    times: tuple[int, ...] = ()  # by region: how often a block of the last launch read, or wrote, a byte


machine = Machine(GPUS[90])


@dataclass(frozen=True)
class EmulatedKernel:
    """What `fastattn.core.cuda.Kernel` is, on the CPU."""

    source: str
    name: str
    definitions: tuple[tuple[str, str], ...] = ()

    def _library(self) -> ctypes.CDLL:
        return library(self.source, tuple(pair for pair in self.definitions if pair[0] in _TYPES))

    def barriers(self) -> int:
        """Return how many barriers the source has."""
        return getattr(self._library(), f"barriers_{self.name}")()

    def occupancy(self, device, block, shared_bytes, cluster) -> int:
        """Return a few."""
        return machine.resident

    def launch(self, device, grid, block, cluster, shared_bytes, arguments, *, cooperative) -> None:
        """Run a grid; RuntimeError where it reads or writes what it must not, or never ends."""
        built = self._library()
        values = {name: int(value) for name, value in self.definitions if name not in _FIXED}
        for name, value in {**values, "WITHOUT": machine.without}.items():
            assert built.define(name.encode(), value), f"{name} is no definition of the emulator's"
        regions = machine.regions if machine.checked else ()
        begin = (ctypes.c_void_p * len(regions))(*(t.data_ptr() for t in regions))
        size = (ctypes.c_int64 * len(regions))(*(t.nbytes for t in regions))
        built.set_regions(len(regions), begin, size)
        run = getattr(built, f"launch_{self.name}")
        run.restype = ctypes.c_char_p
        block = block if self.name.endswith("batch_sum") else machine.threads
        error = run(arguments, grid, block, cluster, shared_bytes, int(cooperative))
        built.bytes_touched.restype = ctypes.c_int64
        machine.launches += 1
        machine.bytes += built.bytes_touched()
        machine.times = tuple(map(built.most_touched, range(len(regions))))
        if error:
            raise RuntimeError(error.decode())


DEFAULTS = Machine(machine.facts)
addresses = scsa._addresses


def _note(tensors):
    machine.regions = tuple(t for t in tensors if t is not None and t.numel())
    return addresses(tensors)


def install(monkeypatch, **changes) -> Machine:
    """Let SCSA's `cuda` serve here, on a machine with these changes, of its facts too; return it."""
    facts = {name: changes.pop(name) for name in Device._fields if name in changes}
    for name, value in {**vars(DEFAULTS), "facts": DEFAULTS.facts._replace(**facts), **changes}.items():
        monkeypatch.setattr(machine, name, value)
    monkeypatch.setattr(scsa, "Kernel", EmulatedKernel)
    monkeypatch.setattr(scsa, "device_facts", lambda device: machine.facts)
    monkeypatch.setattr(scsa, "_addresses", _note)
    monkeypatch.setitem(backends.BACKENDS, "cuda", lambda call: [])
    forget()
    return machine


def forget() -> None:
    """Let nothing be known of the machine that was."""
    for cached in (scsa.plan, scsa._teams, backends._choose):
        cached.cache_clear()
