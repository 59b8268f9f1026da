"""The library of operators for C++, and a packaged model in a program where no Python is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastattn
from fastattn import build_ops
from fastattn.core.operation import FlatOperation
from fastattn.interaction.acp.operation import ACP
from fastattn.interaction.cat.operation import CAT
from fastattn.lga.operation import LGA
from fastattn.scsa.operation import PCSA, SCSA, SMSA

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("aoti_cpp"),
    pytest.mark.skipif(not (shutil.which("c++") and build_ops.find_tool("cmake")), reason="no compiler, or no cmake"),
]

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS: tuple[FlatOperation, ...] = (SCSA, SMSA, PCSA, LGA, ACP, CAT)
MODULES = {
    "scsa": (fastattn.SCSA(16), (2, 16, 14, 14)),
    "scsa-max_pool": (fastattn.SCSA(16, window_size=3, down_sample_mode="max_pool", qkv_bias=True), (2, 16, 9, 10)),
    "smsa": (fastattn.SMSA(16, gate_layer="softmax"), (2, 16, 5, 7)),
    "pcsa": (fastattn.PCSA(16, window_size=-1), (2, 16, 8, 8)),
    "lga": (fastattn.LocalGlobalAttention(16, 4, height=8, width=8), (2, 16, 8, 10)),
    "acp": (fastattn.AggressiveConvPooling(16), (2, 16, 9, 12)),
    "cat": (fastattn.ConceptualAttention(16, 5), (2, 20, 16)),
}
WITHOUT_FASTATTN = "import sys; sys.modules['fastattn'] = None; import torch; torch.ops.load_library(sys.argv[1]); "
SCSA_CALL = (
    "torch.ops.fastattn.scsa_forward(torch.randn(1, 16, 7, 7, dtype={dtype}), [{parameter}] * 17, "
    "1, 7, {mode!r}, 'sigmoid', {dtype}, {backend!r}, False)"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_ops.build(tmp_path_factory.mktemp("ops"))


class Recorded(TorchDispatchMode):
    """The calls of fastattn's operators, with what they returned."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "fastattn":
            self.calls.append((func._schema.name.removeprefix("fastattn::"), args, out))
        return out


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_it_has_the_schemas_of_the_package(library):
    names = [f"{operation}_{way}" for operation in OPERATIONS for way in ("forward", "backward")]
    code = "[print(getattr(torch.ops.fastattn, name).default._schema) for name in sys.argv[2:]]"
    done = python(WITHOUT_FASTATTN + code, library, *names)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(getattr(torch.ops.fastattn, name).default._schema) for name in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_computes_what_the_package_does(memory_format, dtype, library, native, tmp_path):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    with Recorded() as recorded:
        for module, shape in MODULES.values():
            x = torch.randn(shape).to(dtype)
            x = x.contiguous(memory_format=memory_format) if x.dim() == 4 else x
            module.to(dtype)(x.requires_grad_()).square().sum().backward()
    assert len(recorded.calls) == 2 * len(MODULES)
    torch.save(recorded.calls, tmp_path / "calls.pt")
    code = """
torch.set_num_threads(2)
for name, args, expected in torch.load(sys.argv[2]):
    found = getattr(torch.ops.fastattn, name)(*args)
    for out, wanted in list(zip(found, expected))[: 1 if name.endswith("forward") else 2]:
        assert out.stride() == wanted.stride(), name
        torch.testing.assert_close(out, wanted)
"""
    done = python(WITHOUT_FASTATTN + code, library, tmp_path / "calls.pt")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "parameter 4 does not fit the channels of x"),
        ({"dtype": "torch.float64"}, "x is Double; the kernels compute Float, BFloat16 and Half"),
        ({"mode": "recombination"}, "down_sample_mode recombination has no fast path"),
        ({"backend": "triton"}, "exported for the backend triton"),
        ({"parameter": "torch.randn(12, device='meta')"}, "Meta"),
        ({"parameter": "torch.randn(12).to_sparse()"}, "SparseCPU"),
    ],
)
def test_what_it_does_not_serve_is_refused_in_words(given, message, library):
    plain = {"dtype": "torch.float32", "mode": "avg_pool", "backend": "auto", "parameter": "torch.randn(12)"}
    call = SCSA_CALL.format(**plain | given)
    done = python(WITHOUT_FASTATTN + call, library)
    assert done.returncode == 1
    assert message in done.stderr


def test_after_the_package_it_changes_nothing_and_before_it_the_import_says_why(library):
    load = "torch.ops.load_library(sys.argv[1])"
    call = "print(fastattn.SCSA(16).double()(torch.randn(1, 16, 7, 7).double()).dtype)"
    code = f"import sys, torch, fastattn; {load}; {call}"
    done = python(code, library)
    assert done.stdout == "torch.float64\n", done.stderr
    assert "this process has fastattn's operators already" in done.stderr
    done = python(f"import sys, torch; {load}; import fastattn", library)
    assert done.returncode == 1
    assert "was fastattn's library for C++ loaded before it?" in done.stderr


def test_no_sources_and_no_cmake_are_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build_ops, "find_tool", lambda name: None)
    assert build_ops.main(["-o", str(tmp_path)]) == 1
    assert "cmake was not found" in capsys.readouterr().err
    monkeypatch.setattr(build_ops, "PACKAGE", tmp_path / "fastattn")
    assert build_ops.main(["-o", str(tmp_path)]) == 1
    assert "no C++ sources" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_a_program_without_python_runs_a_packaged_model(model, library, tmp_path):
    pytest.importorskip("timm")
    torch_folder = Path(torch.__file__).parent
    sources, build, cmake = ROOT / "examples" / "cpp", tmp_path / "build", build_ops.find_tool("cmake")
    subprocess.run(
        [cmake, "-S", sources, "-B", build, f"-DTORCH={torch_folder}", f"-DFASTATTN_OPS={library}"], check=True
    )
    subprocess.run([cmake, "--build", build], check=True)
    folder = tmp_path / "model"
    command = [sys.executable, sources / "export.py", folder, "--model", model, "--batch", "2"]
    subprocess.run(command, check=True, cwd=ROOT)
    program = build / "run_model"
    needed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    assert "libpython" not in needed
    assert "libfastattn_ops" in needed
    assert len(re.findall(r"libgomp\S* =>", needed)) == 1  # one pool of threads
    done = subprocess.run([program, folder, "2"], env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"relative error \S+\n\S+ images/s on 2 threads\n", done.stdout)
