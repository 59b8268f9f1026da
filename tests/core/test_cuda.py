"""CUDA kernels without a GPU: what NVRTC makes, where it is kept, what the driver is told, and when cuda serves."""

import ctypes
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import fastattn
from benchmarks.gpus import GPUS
from fastattn.core import backends, cuda, nvrtc
from fastattn.core.backends import Call, choose, unsupported_reasons
from fastattn.core.cuda import Kernel
from fastattn.scsa import native as native_scsa
from fastattn.scsa import operation
from tests.helpers import INTERPRETED, draw, make

pytest.importorskip("cuda.bindings")
pytestmark = [pytest.mark.cpu, pytest.mark.skipif(INTERPRETED, reason="about what Triton has no part in")]

TWICE = """
#include "scale.cuh"

struct Arguments {
    const float* x;
    float* out;
    long long count;
};

extern "C" __global__ void twice_kernel(const __grid_constant__ Arguments a) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < a.count) a.out[i] = scaled(a.x[i]) + OFFSET;
}
"""
SCALE = '#include "factor.cuh"\n__device__ float scaled(float value) { return FACTOR * value; }\n'
FACTOR = "#define FACTOR 2.0f\n"
KERNEL = Kernel("family/twice.cu", "twice_kernel", (("OFFSET", "0.0f"),))
HOPPER = GPUS[90]


def forget():
    """Let nothing be remembered of sources, machine code and functions."""
    known = [nvrtc.missing, nvrtc.sources, nvrtc.version, nvrtc.cubin, cuda._primary_context, backends._choose]
    for function in known:
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    cuda._loaded.clear()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of sources, and an empty one for machine code."""
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "family").mkdir()
    (folder / "family" / "twice.cu").write_text(TWICE)
    (folder / "family" / "scale.cuh").write_text(SCALE)
    (folder / "factor.cuh").write_text(FACTOR)
    forget()
    monkeypatch.setattr(nvrtc, "sources", lambda: folder)
    monkeypatch.setenv("FASTATTN_CACHE_DIR", str(tmp_path / "cache"))
    yield folder
    monkeypatch.undo()
    forget()


@pytest.fixture
def compilations(monkeypatch):
    """Count compilations, whose code is their number."""
    made = []

    def compiled(*what):
        made.append(what)
        return b"code %d" % len(made)

    monkeypatch.setattr(nvrtc, "compiled", compiled)
    return made


def again(kernel=KERNEL, capability=90):
    """Return the machine code as another process would find it."""
    nvrtc.cubin.cache_clear()
    return kernel.cubin(capability)


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_a_kernel_compiles_without_a_driver(sources, capability):
    assert nvrtc.missing() == []
    code = KERNEL.cubin(capability)
    assert code.startswith(b"\x7fELF")
    assert b"twice_kernel" in code
    assert again(capability=capability) == code


def test_from_9_0_on_what_one_architecture_alone_has_is_used():
    assert [nvrtc.architecture(each) for each in (80, 89, 90, 100, 120)] == [
        "sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a",
    ]  # fmt: skip


def test_what_does_not_compile_says_where(sources):
    with pytest.raises(RuntimeError, match=r'(?s)twice.cu for sm_90a:.*identifier "OFFSET" is undefined'):
        Kernel("family/twice.cu", "twice_kernel").cubin(90)
    assert not (sources.parent / "cache").exists()


def test_code_is_compiled_once_and_kept_whole(sources, compilations):
    assert again() == again() == b"code 1"
    (file,) = (sources.parent / "cache").iterdir()
    assert file.suffix == ".cubin"
    for damaged in (b"", file.read_bytes()[:-1], file.read_bytes().replace(b"code", b"cope")):
        file.write_bytes(damaged)
        assert again() == b"code %d" % len(compilations)
        assert again() == b"code %d" % len(compilations)
    assert len(compilations) == 4
    assert list(file.parent.iterdir()) == [file]


def test_whatever_decides_on_the_code_is_part_of_its_name(sources, compilations, monkeypatch):
    def differs():
        before = len(compilations)
        again()
        return len(compilations) == before + 1

    assert differs()
    assert not differs()
    for name in ("family/twice.cu", "family/scale.cuh", "factor.cuh"):
        (sources / name).write_text((sources / name).read_text() + "\n")
        assert differs()
    (sources / "more").mkdir()
    (sources / "more" / "new.cuh").write_text("")
    assert differs()
    again(Kernel("family/twice.cu", "twice_kernel", (("OFFSET", "1.0f"),)))
    again(capability=80)
    assert len(compilations) == 7
    monkeypatch.setattr(nvrtc, "package_version", lambda: "13.0.99")
    assert differs()
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    assert differs()


def test_kernels_of_one_source_share_its_code(sources, compilations):
    assert Kernel("family/twice.cu", "another_kernel", KERNEL.definitions).cubin(90) == KERNEL.cubin(90)
    assert len(compilations) == 1


def test_without_a_place_to_keep_it_code_is_compiled_in_memory(sources, compilations, monkeypatch):
    (sources.parent / "file").write_text("")
    monkeypatch.setenv("FASTATTN_CACHE_DIR", str(sources.parent / "file" / "below"))
    assert again() == b"code 1"
    monkeypatch.setenv("FASTATTN_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(sources.parent / "user"))
    assert nvrtc.cache_folder() == sources.parent / "user" / "fastattn"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(nvrtc.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("nobody's")))
    assert again() == b"code 2"


def test_what_is_missing_is_said_with_what_to_install(sources, monkeypatch):
    def broken():
        raise RuntimeError("libnvrtc.so.13: cannot open\nmore")

    def said(setting, *patch):
        nvrtc.missing.cache_clear()
        with monkeypatch.context() as patched:
            getattr(patched, setting)(*patch)
            (reason,) = unsupported_reasons("cuda", Call("scsa", "cuda"))[:1]
        return reason

    assert "pip install cuda-bindings" in said("setitem", sys.modules, "cuda.bindings", None)
    assert "NVRTC does not load (libnvrtc.so.13: cannot open): pip" in said("setattr", nvrtc, "version", broken)


def test_an_install_without_sources_says_so(monkeypatch, tmp_path):
    forget()
    monkeypatch.setattr(nvrtc, "PACKAGE", tmp_path / "package")
    assert nvrtc.missing() == ["fastattn was installed without its CUDA sources"]
    forget()


class Driver:
    """Stands in for two GPUs and their driver: notes what it is told, with the context that is current then."""

    def __init__(self, driver):
        self.driver = driver
        self.contexts = [0]  # this thread's; none at first
        self.calls = []
        self.capturing = 0
        self.loaded = 0

    def told(self, name):
        return [arguments for called, *arguments in self.calls if called == name]

    def note(self, name, *arguments):
        self.calls.append((name, self.contexts[-1], *arguments))

    def cuDeviceGet(self, index):
        return 0, index

    def cuDevicePrimaryCtxRetain(self, index):
        return 0, self.driver.CUcontext(100 + index)

    def cuCtxGetCurrent(self):
        return 0, self.driver.CUcontext(self.contexts[-1])

    def cuCtxPushCurrent(self, context):
        self.contexts.append(int(context))
        return (0,)

    def cuCtxPopCurrent(self):
        return 0, self.driver.CUcontext(self.contexts.pop())

    def cuStreamIsCapturing(self, stream):
        return 0, self.capturing

    def cuModuleLoadData(self, code):
        self.note("load", code)
        self.loaded += 1
        return 0, self.driver.CUmodule(self.loaded)

    def cuModuleGetFunction(self, module, name):
        self.note("function", name)
        return 0, self.driver.CUfunction(int(module))

    def cuFuncSetAttribute(self, function, attribute, value):
        self.note("set", attribute.name.removeprefix("CU_FUNC_ATTRIBUTE_"), value)
        return (0,)

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function, block, shared_bytes):
        self.note("blocks", block, shared_bytes)
        return 0, 2

    def cuOccupancyMaxActiveClusters(self, function, config):
        self.note("clusters", config.blockDimX, config.sharedMemBytes, self.attributes(config))
        return 0, 33

    def attributes(self, config):
        found = {one.id.name.removeprefix("CU_LAUNCH_ATTRIBUTE_"): one.value for one in config.attrs}
        assert config.numAttrs == len(found)
        if size := found.get("CLUSTER_DIMENSION"):
            found["CLUSTER_DIMENSION"] = size.clusterDim.x, size.clusterDim.y, size.clusterDim.z
        if value := found.get("COOPERATIVE"):
            found["COOPERATIVE"] = value.cooperative
        return found

    def cuLaunchKernelEx(self, config, function, parameters, extra):
        sizes = [(getattr(config, f"{what}Dim{axis}")) for what in ("grid", "block") for axis in "XYZ"]
        given = ctypes.string_at(ctypes.c_void_p.from_address(parameters).value, 24)
        stream = int(config.hStream)
        self.note("launch", stream, sizes, config.sharedMemBytes, self.attributes(config), given, int(function))
        return (self.driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS if stream == 1666 else 0,)


@pytest.fixture
def driver(sources, compilations, monkeypatch):
    """Two Hoppers, whose streams are 1000 and 1001."""
    from cuda.bindings import driver

    found = Driver(driver)
    for name in dir(found):
        if name.startswith("cu"):
            monkeypatch.setattr(driver, name, getattr(found, name))
    monkeypatch.setattr(cuda, "device_facts", lambda device: HOPPER)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1000 + device.index))
    return found


ARGUMENTS = struct.pack("<QQq", 0x7F0000000100, 0x7F0000000200, 77)
FIRST, SECOND = (torch.device("cuda", index) for index in range(2))


def launch(device=FIRST, cluster=1, shared_bytes=1024, cooperative=False):
    KERNEL.launch(device, 264, 256, cluster, shared_bytes, ARGUMENTS, cooperative=cooperative)


def test_a_launch_says_all_that_decides_on_it(driver):
    launch()
    (called,) = driver.told("launch")
    assert called == [100, 1000, [264, 1, 1, 256, 1, 1], 1024, {}, ARGUMENTS, 1]
    launch(cluster=4, cooperative=True)
    assert driver.told("launch")[1][4] == {"CLUSTER_DIMENSION": (4, 1, 1), "COOPERATIVE": 1}
    assert driver.told("load") == [[100, b"code 1"]]
    assert driver.told("function") == [[100, b"twice_kernel"]]


def test_a_block_may_have_the_shared_memory_that_it_asks_for(driver):
    for size in (2048, 1024, 2048, 232448):
        launch(shared_bytes=size)
    assert driver.told("set") == [
        [100, "NON_PORTABLE_CLUSTER_SIZE_ALLOWED", 1],
        [100, "MAX_DYNAMIC_SHARED_SIZE_BYTES", 2048],
        [100, "MAX_DYNAMIC_SHARED_SIZE_BYTES", 232448],
    ]
    assert KERNEL.occupancy(FIRST, 256, 232448, 1) == 2 * 132
    assert len(driver.told("set")) == 3


def test_each_device_has_its_own_function_context_and_stream(driver):
    driver.contexts = [100]  # the first device is current
    for device in (FIRST, SECOND, FIRST, SECOND):
        launch(device)
    assert [(context, stream, function) for context, stream, *_, function in driver.told("launch")] == [
        (100, 1000, 1), (101, 1001, 2), (100, 1000, 1), (101, 1001, 2),
    ]  # fmt: skip
    assert [context for context, *_ in driver.told("load")] == [100, 101]
    assert driver.contexts == [100]


def test_an_error_of_the_driver_is_raised_and_the_context_put_back(driver, monkeypatch):
    driver.contexts = [101]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1666))
    with pytest.raises(RuntimeError, match="CUDA error: CUDA_ERROR_ILLEGAL_ADDRESS"):
        launch()
    assert driver.contexts == [101]


def test_while_a_graph_is_captured_nothing_is_loaded(driver):
    driver.capturing = 1
    with pytest.raises(RuntimeError, match=r"twice_kernel cannot be loaded while .*: call fastattn.warmup first"):
        launch()
    assert driver.contexts == [0]
    driver.capturing = 0
    launch()
    driver.capturing = 1
    launch()
    assert len(driver.told("launch")) == 2


def test_threads_load_a_kernel_once(driver):
    driver.contexts = [100]
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        launch()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(driver.told("load")) == 1
    assert len(driver.told("launch")) == 4


def test_older_gpus_have_no_clusters_to_allow(driver, monkeypatch):
    monkeypatch.setattr(cuda, "device_facts", lambda device: HOPPER._replace(capability=89, shared_bytes=101376))
    launch()
    assert driver.told("set") == [[100, "MAX_DYNAMIC_SHARED_SIZE_BYTES", 1024]]


def test_occupancy_is_that_of_the_device(driver):
    assert KERNEL.occupancy(FIRST, 256, 1024, 1) == 2 * 132
    assert KERNEL.occupancy(SECOND, 256, 1024, 4) == 33
    assert driver.told("blocks") == [[100, 256, 1024]]
    assert driver.told("clusters") == [[101, 256, 1024, {"CLUSTER_DIMENSION": (4, 1, 1)}]]


def test_the_facts_of_a_device_are_torchs(monkeypatch):
    known = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=232448, L2_cache_size=50 << 20
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    assert cuda.device_facts(torch.device("cuda", 77)) == HOPPER


@pytest.fixture
def served(sources, monkeypatch):
    """A Hopper."""
    monkeypatch.setattr(cuda, "capabilities", lambda: [90])
    backends._choose.cache_clear()


def test_auto_chooses_cuda_where_it_was_measured_to_be_faster(served, monkeypatch):
    pytest.importorskip("triton")
    call = Call("scsa", "cuda")
    assert unsupported_reasons("cuda", call) == []
    assert choose("cuda", *call) == "cuda"
    assert choose("auto", *call) == "triton"
    assert backends._answer("cuda", call) == "can serve; auto does not choose it: no measurement on sm_90 yet"
    monkeypatch.setattr(cuda, "FASTER", frozenset({("scsa", 90)}))
    backends._choose.cache_clear()
    assert choose("auto", *call) == "cuda"
    assert backends._answer("cuda", call) == "can serve"
    assert choose("auto", *call._replace(facts=(True, False))) == "reference"
    monkeypatch.setattr(cuda, "capabilities", lambda: [90, 100])
    backends._choose.cache_clear()
    assert choose("auto", *call) == "triton"
    assert "no measurement on sm_100 yet" in backends._answer("cuda", call)


def test_what_cuda_does_not_serve(served, monkeypatch):
    assert "recombination" in unsupported_reasons("cuda", Call("scsa", "cuda", facts=(True, False)))[0]
    assert unsupported_reasons("cuda", Call("lga", "cuda")) == ["there is no kernel yet"]
    monkeypatch.setattr(cuda, "capabilities", lambda: [75, 90])
    assert "a GPU here is sm_75; cuda serves sm_80 and newer" in unsupported_reasons("cuda", Call("scsa", "cuda"))
    monkeypatch.setattr(cuda, "capabilities", lambda: [90, 990])
    major, minor = nvrtc.version()
    (why,) = unsupported_reasons("cuda", Call("scsa", "cuda"))
    assert why == f"a GPU here is sm_990; NVRTC {major}.{minor} compiles up to sm_{nvrtc.newest()}"
    assert 120 <= nvrtc.newest() < 990
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "torch was built for ROCm" in unsupported_reasons("cuda", Call("scsa", "cuda"))[0]


def test_on_the_cpu_cuda_says_that_it_serves_gpus():
    why = "'cuda' cannot serve this scsa call: x is on cpu; cuda serves NVIDIA GPUs"
    with fastattn.use_backend("cuda"), pytest.raises(RuntimeError, match=why):
        make("scsa", 8)(draw(1, 8, 7, 7))
    assert "cuda" not in fastattn.available_backends()


def test_warmup_runs_both_passes_of_the_named_backend(native, monkeypatch):
    calls = []

    def noted(name):
        def run(*arguments):
            calls.append(name)
            return getattr(native_scsa, name)(*arguments)

        return run

    server = SimpleNamespace(forward=noted("forward"), backward=noted("backward"))
    monkeypatch.setitem(operation._SERVERS, "cuda", server)
    monkeypatch.setitem(backends.BACKENDS, "cuda", lambda call: [])
    backends._choose.cache_clear()
    with fastattn.use_backend("cuda"):
        fastattn.warmup(make("scsa", 8), [(1, 8, 7, 7), (2, 8, 9, 7)])
    backends._choose.cache_clear()
    assert calls == ["forward", "backward", "forward"] * 2
