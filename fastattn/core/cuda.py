"""CUDA C++ kernels on a GPU: loaded when first needed, and launched through the driver.

The driver is that of `cuda.bindings`, which is imported with the first launch.
"""

import ctypes
import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import nvrtc

OLDEST = 80  # compute capability
# (operation, compute capability) where a result in benchmarks/results shows that cuda is faster than triton
FASTER: frozenset[tuple[str, int]] = frozenset()


class Device(NamedTuple):
    """What a plan needs to know of a GPU."""

    capability: int  # 90 is 9.0
    processors: int
    shared_bytes: int  # the most that a block may ask for
    l2_bytes: int


@functools.cache
def device_facts(device: torch.device) -> Device:
    """Return the facts of a GPU."""
    known: Any = torch.cuda.get_device_properties(device)
    capability = 10 * known.major + known.minor
    return Device(capability, known.multi_processor_count, known.shared_memory_per_block_optin, known.L2_cache_size)


def capabilities() -> list[int]:
    """Return the compute capabilities of the GPUs here."""
    found = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return sorted({10 * major + minor for major, minor in found})


def reasons() -> list[str]:
    """Return why a GPU here cannot run the kernels, or why they cannot be compiled for it."""
    if torch.version.hip:
        return ["torch was built for ROCm; cuda serves NVIDIA GPUs"]
    old = [f"a GPU here is sm_{each}; cuda serves sm_{OLDEST} and newer" for each in capabilities() if each < OLDEST]
    if lacking := old or nvrtc.missing():
        return lacking
    newest, (major, minor) = nvrtc.newest(), nvrtc.version()
    newer = [each for each in capabilities() if each > newest]
    return [f"a GPU here is sm_{each}; NVRTC {major}.{minor} compiles up to sm_{newest}" for each in newer]


def not_faster(operation: str) -> str:
    """Return why auto does not choose cuda for an operation, or nothing where it is known to be the fastest."""
    unknown = [capability for capability in capabilities() if (operation, capability) not in FASTER]
    if FASTER and not unknown:
        return ""
    return f"no measurement on {', '.join(f'sm_{each}' for each in unknown) or 'any GPU'} yet"


@dataclass(frozen=True)
class Kernel:
    """One `extern "C" __global__` function of a source below csrc/cuda, whose only parameter is a struct.

    A definition is a macro's name and its value.
    """

    source: str
    name: str
    definitions: nvrtc.Definitions = ()

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.source, self.name, self.definitions))

    def __hash__(self) -> int:  # of every launch
        return self._hash

    def launch(
        self,
        device: torch.device,
        grid: int,
        block: int,
        cluster: int,
        shared_bytes: int,
        arguments: bytes,
        *,
        cooperative: bool,
    ) -> None:
        """Launch on the current stream of a device, whichever is current, with the struct's bytes.

        The first launch compiles and loads; RuntimeError where that happens while a CUDA graph is captured.
        """
        from cuda.bindings import driver

        given = ctypes.create_string_buffer(arguments, len(arguments))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        config = _config(grid, block, cluster, shared_bytes, cooperative)
        config.hStream = _stream(device)
        with _context(device):
            function = _function(self, device, shared_bytes)
            _done(driver.cuLaunchKernelEx(config, function, ctypes.addressof(parameters), 0))

    def occupancy(self, device: torch.device, block: int, shared_bytes: int, cluster: int) -> int:
        """Return how many blocks, or clusters of several, the whole device holds at once."""
        from cuda.bindings import driver

        with _context(device):
            function = _function(self, device, shared_bytes)
            if cluster > 1:
                config = _config(cluster, block, cluster, shared_bytes, False)
                return _done(driver.cuOccupancyMaxActiveClusters(function, config))
            each = _done(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, block, shared_bytes))
            return each * device_facts(device).processors

    def cubin(self, capability: int) -> bytes:
        """Return the machine code for a compute capability; RuntimeError with the compiler's words."""
        return nvrtc.cubin(self.source, self.definitions, nvrtc.architecture(capability))


def _config(grid: int, block: int, cluster: int, shared_bytes: int, cooperative: bool) -> Any:
    from cuda.bindings import driver

    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes = shared_bytes
    config.attrs = _attributes(cluster, cooperative)
    config.numAttrs = len(config.attrs)
    return config


@functools.cache
def _attributes(cluster: int, cooperative: bool) -> list[Any]:
    from cuda.bindings import driver

    known, found = driver.CUlaunchAttributeID, []
    if cluster > 1:
        found.append(driver.CUlaunchAttribute())
        found[-1].id = known.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = found[-1].value.clusterDim
        size.x, size.y, size.z = cluster, 1, 1
    if cooperative:
        found.append(driver.CUlaunchAttribute())
        found[-1].id = known.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        found[-1].value.cooperative = 1
    return found


def _done(answer: Sequence[Any]) -> Any:
    """Return what a function of the driver gives; RuntimeError with the error's name."""
    code, *values = answer
    if code != 0:
        raise RuntimeError(f"CUDA error: {code.name}")
    return values[0] if values else None


def _stream(device: torch.device) -> Any:
    from cuda.bindings import driver

    return driver.CUstream(torch.cuda.current_stream(device).cuda_stream)


@contextmanager
def _context(device: torch.device) -> Iterator[None]:
    """Let a device's primary context, which is torch's, be this thread's: another may be, or none."""
    from cuda.bindings import driver

    wanted = _primary_context(_index(device))
    if int(_done(driver.cuCtxGetCurrent())) == int(wanted):
        yield
        return
    _done(driver.cuCtxPushCurrent(wanted))
    try:
        yield
    finally:
        _done(driver.cuCtxPopCurrent())


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def _primary_context(index: int) -> Any:
    from cuda.bindings import driver

    return _done(driver.cuDevicePrimaryCtxRetain(_done(driver.cuDeviceGet(index))))


@dataclass
class _Loaded:
    function: Any
    shared_bytes: int = 0  # that a block may ask for


_loaded: dict[tuple[Kernel, int], _Loaded] = {}  # by the device's index
_loading = threading.Lock()


def _function(kernel: Kernel, device: torch.device, shared_bytes: int) -> Any:
    """Return the function of a kernel in the context of its device, which is current, for blocks of so many bytes."""
    key = kernel, _index(device)
    found = _loaded.get(key)
    if found is None or found.shared_bytes < shared_bytes:
        with _loading:
            found = _loaded.get(key) or _loaded.setdefault(key, _Loaded(_load(kernel, device)))
            if found.shared_bytes < shared_bytes:
                _set(found.function, "MAX_DYNAMIC_SHARED_SIZE_BYTES", shared_bytes)
                found.shared_bytes = shared_bytes
    return found.function


def _set(function: Any, attribute: str, value: int) -> None:
    from cuda.bindings import driver

    known = getattr(driver.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{attribute}")
    _done(driver.cuFuncSetAttribute(function, known, value))


def _load(kernel: Kernel, device: torch.device) -> Any:
    from cuda.bindings import driver

    if _done(driver.cuStreamIsCapturing(_stream(device))) != 0:
        raise RuntimeError(f"{kernel.name} cannot be loaded while a CUDA graph is captured: call fastattn.warmup first")
    capability = device_facts(device).capability
    module = _done(driver.cuModuleLoadData(kernel.cubin(capability)))
    function = _done(driver.cuModuleGetFunction(module, kernel.name.encode()))
    if capability >= 90:  # clusters of more than eight blocks
        _set(function, "NON_PORTABLE_CLUSTER_SIZE_ALLOWED", 1)
    return function
