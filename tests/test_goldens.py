"""The reference, and the fast paths beside it, against tensors that the authors' released module computed."""

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

from safetensors import safe_open

from fastattn import SCSA

from .helpers import FORMATS, assert_accurate, named, run

FOLDER = Path(os.environ.get("FASTATTN_GOLDENS") or Path(__file__).parent / "goldens") / "scsa"
FILES = sorted(FOLDER.glob("*.safetensors"))
STORED = 1e-7  # the files hold float64 results rounded to float32


def load(path, dtype):
    """Return the module, its input, the gradient fed to it, and the true results by name."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        module = SCSA(**json.loads(file.metadata()["config"]))
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    module.load_state_dict(parameters)
    truth = {"out": tensors["out"], "grad_x": tensors["grad_x"]}
    truth |= {name: tensors[f"grad_param.{name}"] for name, _ in module.named_parameters()}
    truth = {name: tensor.double() for name, tensor in truth.items()}
    return module.to(dtype), tensors["x"].to(dtype), tensors["grad_out"].to(dtype), truth


def test_there_are_goldens():
    assert len(FILES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference_in_float64_is_exact(path):
    module, x, grad_out, truth = load(path, torch.float64)
    got = run(module, x, grad_out, "reference")
    largest = max(float(t.abs().max()) for t in truth.values())
    for name, exact in truth.items():
        error = (got[name] - exact).norm()
        assert error <= STORED * exact.norm() or exact.abs().max() < 1e-12 * largest, name


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_float32(path, memory_format, backend):
    module, x, grad_out, truth = load(path, torch.float32)
    eager = run(module, x, grad_out, "reference")
    assert_accurate(run(module, x.contiguous(memory_format=memory_format), grad_out, backend), truth, eager)
