"""A model in a file: what was exported computes what the model does, where it runs, with and without this package."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import fastattn
from fastattn import export
from fastattn.core import native as loader
from fastattn.core.operation import decompositions
from tests.helpers import randomize
from tests.models.helpers import with_scales

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]  # what exporters say of themselves

BATCH, SIZES = ("batch",), ("batch", "height", "width")
CASES = {
    "scsa": (fastattn.SCSA(16), (torch.randn(2, 16, 14, 14),), SIZES),
    "smsa": (fastattn.SMSA(16), (torch.randn(2, 16, 10, 12),), SIZES),
    "pcsa": (fastattn.PCSA(16), (torch.randn(2, 16, 14, 14),), SIZES),
    "cfsam": (
        fastattn.CFSAM((8, 16), dim=32, num_heads=2),
        ([torch.randn(2, 8, 9, 9), torch.randn(2, 16, 4, 4)],),  # 97 tokens in two parts
        SIZES,
    ),
    "lga": (fastattn.LocalGlobalAttention(16, 4, height=8, width=8), (torch.randn(2, 16, 8, 10),), SIZES),
    "acp": (fastattn.AggressiveConvPooling(16), (torch.randn(2, 16, 9, 12),), BATCH),
    "cat": (fastattn.ConceptualAttention(16, 5), (torch.randn(2, 20, 16),), BATCH),
    "interaction": (
        fastattn.EnhancedInteraction(16, num_concepts=5, num_prefix_tokens=1),
        (torch.randn(2, 1 + 6 * 4, 16), (6, 4)),
        BATCH,
    ),
}
NAMES = ["scsa", *(pytest.param(name, marks=pytest.mark.full) for name in CASES if name != "scsa")]
WHOLE = {"resnet18": "scsa", "vit_tiny_patch16_224": "interaction"}
WITHOUT_FASTATTN = "import sys; sys.modules['fastattn'] = None; import torch; "


def case(name):
    module, example, dynamic = CASES[name]
    return randomize(module).eval(), example, dynamic


def alone(code, *arguments):
    """Run code in a process that cannot import fastattn."""
    subprocess.run([sys.executable, "-c", WITHOUT_FASTATTN + code, *map(str, arguments)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_program_of_standard_operators_loads_without_this_package(name, tmp_path):
    module, example, dynamic = case(name)
    program = export.to_program(module, example, dynamic=dynamic)
    assert "fastattn" not in str(program.graph)
    torch.export.save(program, tmp_path / "model.pt2")
    alone("torch.export.load(sys.argv[1]).module()", tmp_path / "model.pt2")


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_with_gradients_on_loads_without_this_package(name, tmp_path):
    module, example, dynamic = case(name)
    export.to_torchscript(module, example, tmp_path / "model.pt", dynamic=dynamic)
    alone("torch.jit.load(sys.argv[1])", tmp_path / "model.pt")
    if name != "interaction":  # whose size is no tensor
        with fastattn.use_backend("auto"):
            found, expected = map(tree_leaves, (torch.jit.trace(module, example)(*example), module(*example)))
        for out, wanted in zip(found, expected, strict=True):
            assert (out - wanted).norm() <= export.LIMITS[torch.float32] * wanted.norm()


def test_a_program_in_float64_is_verified():
    export.to_program(fastattn.SCSA(16).double().eval(), torch.randn(2, 16, 7, 7, dtype=torch.float64))


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_onnx(name, dtype, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, example, dynamic = case(name)
    own = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(dtype), example)
    export.to_onnx(module.to(dtype), own, tmp_path / "model.onnx", dynamic=dynamic)
    module.float()


@pytest.mark.full
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_exporters_themselves_write_standard_operators(name, dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    module, example, _ = case(name)
    torch.onnx.export(module, example, tmp_path / "model.onnx", dynamo=dynamo, opset_version=18)
    assert {node.domain for node in onnx.load(tmp_path / "model.onnx").graph.node} <= {"", "pkg.onnxscript.torch_lib"}


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_openvino(name, tmp_path):
    pytest.importorskip("openvino")
    module, example, dynamic = case(name)
    export.to_openvino(module, example, tmp_path / "model.xml", dynamic=dynamic)


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["native", "standard"])
@pytest.mark.parametrize("name", ["scsa", "cat"])
def test_aoti(name, kernels, tmp_path):
    module, example, _ = case(name)
    export.to_aoti(module, example, tmp_path / "model.pt2", kernels=kernels)
    if kernels == "standard":
        alone("torch._inductor.aoti_load_package(sys.argv[1])", tmp_path / "model.pt2")


@pytest.mark.full
@pytest.mark.parametrize("backbone", WHOLE)
def test_whole_models(backbone, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = with_scales(backbone, WHOLE[backbone]).eval()
    x = torch.randn(2, 3, 224, 224)
    export.to_onnx(model, x, tmp_path / "model.onnx", dynamic=BATCH)
    export.to_torchscript(model, x, tmp_path / "model.pt", dynamic=BATCH)


def test_a_size_that_cannot_be_dynamic_is_named():
    class Fixed(nn.Module):
        def forward(self, x):
            return x + torch.ones(x.shape[0], 3, 14, 14)

    for dynamic in (("height",), ("batch", "height")):
        with pytest.raises(ValueError, match=r"^height cannot be dynamic in this model:"):
            export.to_program(Fixed().eval(), torch.randn(2, 3, 14, 14), dynamic=dynamic)
    with pytest.raises(ValueError, match="the example's batch is 1"):
        export.to_program(Fixed().eval(), torch.randn(1, 3, 14, 14), dynamic=BATCH)
    with pytest.raises(ValueError, match="training mode"):
        export.to_program(Fixed(), torch.randn(1, 3, 14, 14))


def test_what_computes_something_else_is_refused():
    module, (x,), _ = case("scsa")
    with pytest.raises(ArithmeticError, match="off the model's"):
        export._verify(lambda x: module(x) * 1.01, module, (x,), ())


class Cancelling(torch.nn.Module):
    """Rounds, in float32, to 1e-3."""

    def forward(self, x):
        return (x + 1e4) - 1e4


def test_what_is_nearer_to_float64_than_the_model_is_taken():
    x = torch.randn(1000)
    export._verify(lambda x: x.clone(), Cancelling(), (x,), ())
    with pytest.raises(ArithmeticError, match="off the model's"):
        export._verify(lambda x: x + 0.01, Cancelling(), (x,), ())


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(ArithmeticError, match=r"has shape \(1, 3\), not \(3,\)"):
        export._verify(lambda x: x[None], Cancelling(), (torch.randn(3),), ())


@pytest.mark.parametrize("name", ["scsa", "lga", "acp", "cat"])
def test_the_backend_of_an_exported_program_is_chosen_where_it_runs(name, native, monkeypatch):
    """Without the extension its operators compute by the definition, forward and backward."""
    module, (x,), _ = case(name)
    module.zero_grad()
    program = torch.export.export(module, (x,))
    assert "native" not in str(program.graph)
    operators = {node.target for node in program.graph.nodes} & decompositions().keys()
    assert len(operators) == 1
    module(x).square().sum().backward()
    expected = {key.replace("_", "."): parameter.grad for key, parameter in module.named_parameters()}
    monkeypatch.setattr(loader, "takes", lambda x: False)
    monkeypatch.setattr("fastattn.scsa.operation.fastest", lambda operation, x: "reference")
    monkeypatch.setattr(loader, "run", None)  # calling it would raise
    exported = program.module()
    exported(x).square().sum().backward()
    for key, parameter in exported.named_parameters():
        wanted = expected[key.replace("_", ".")]
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=float(wanted.abs().max()) * 1e-4 + 1e-4)
