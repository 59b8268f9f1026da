"""The reference, and the fast paths beside it, against tensors that the authors' released module computed."""

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

from safetensors import safe_open

import fastattn
from tests.helpers import INTERPRETED, assert_accurate, by_turns, named, run, run_in_other_orders

pytestmark = pytest.mark.triton

FOLDER = Path(os.environ.get("FASTATTN_GOLDENS") or Path(__file__).parents[1] / "goldens")
MODULES = {"scsa": fastattn.SCSA, "lga": fastattn.LocalGlobalAttention}  # by folder
FILES = sorted(path for name in MODULES for path in (FOLDER / name).glob("*.safetensors"))
MOST = [INTERPRETED and i % 4 != 2 for i in range(len(FILES))]  # for a full run alone
STORED = 1e-7  # the files hold float64 results rounded to float32


def load(path, dtype):
    """Return the module, its input, the gradient fed to it, and the true results by name."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        options = json.loads(file.metadata()["config"])
        if "contraction" in file.metadata():
            options["contraction"] = file.metadata()["contraction"]
        module = MODULES[path.parent.name](**options)
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    module.load_state_dict(parameters)
    truth = {"out": tensors["out"], "grad_x": tensors["grad_x"]}
    for name, parameter in module.named_parameters():  # released: queries and keys have no gradient
        grad = tensors.get(f"grad_param.{name}", torch.zeros_like(parameter))
        truth[name] = grad.view(parameter.shape)  # the author's alphas are scalars
    truth = {name: tensor.double() for name, tensor in truth.items()}
    return module.to(dtype), tensors["x"].to(dtype), tensors["grad_out"].to(dtype), truth


def test_there_are_goldens():
    counts = {name: sum(path.parent.name == name for path in FILES) for name in MODULES}
    assert counts["scsa"] >= 8
    assert counts["lga"] >= 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference_in_float64_is_exact(path):
    module, x, grad_out, truth = load(path, torch.float64)
    got = run(module, x, grad_out, "reference")
    largest = max(float(t.abs().max()) for t in truth.values())
    for name, exact in truth.items():
        error = (got[name] - exact).norm()
        assert error <= STORED * exact.norm() or exact.abs().max() < 1e-12 * largest, name


@pytest.mark.parametrize(("path", "memory_format"), by_turns(FILES, MOST), ids=named)
def test_float32(path, memory_format, backend, request):
    if path.parent.name == "lga":
        request.getfixturevalue("few_programs")
    module, x, grad_out, truth = load(path, torch.float32)
    if "can serve" not in next(line for line in fastattn.explain(module, x).splitlines() if f"  {backend}:" in line):
        pytest.skip(f"{backend} does not serve it")
    eager = [run(module, x, grad_out, "reference")]
    if path.parent.name == "lga":
        eager += run_in_other_orders(module, x, grad_out)
    assert_accurate(run(module, x.contiguous(memory_format=memory_format), grad_out, backend), truth, *eager)
