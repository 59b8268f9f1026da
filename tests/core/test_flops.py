"""FLOPs: what torch's counter says of the registered operators, of modules on every backend, and of whole models."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fastattn
from fastattn.core import backends, flops
from fastattn.core.flops import multiply_adds
from tests.helpers import few

pytestmark = pytest.mark.cpu
Case = tuple[Callable[[], nn.Module], Callable[[], Sequence]]


def x(*shape: int) -> Tensor:
    return torch.empty(shape, requires_grad=True)


SCSA_CASES: dict[str, Case] = {
    "SCSA, heads": (lambda: fastattn.SCSA(16, head_num=2), lambda: [x(2, 16, 14, 15)]),
    "SCSA, softmax and maximum": (
        lambda: fastattn.SCSA(16, gate_layer="softmax", down_sample_mode="max_pool"), lambda: [x(2, 16, 14, 15)],
    ),
    "SMSA": (lambda: fastattn.SMSA(16), lambda: [x(2, 16, 14, 15)]),
    "PCSA, biases": (lambda: fastattn.PCSA(16, qkv_bias=True), lambda: [x(2, 16, 14, 15)]),
    "PCSA, mean of all": (lambda: fastattn.PCSA(16, window_size=-1), lambda: [x(2, 16, 14, 15)]),
}  # fmt: skip
LGA_CASES: dict[str, Case] = {
    "LGA": (lambda: fastattn.LocalGlobalAttention(16, 4), lambda: [x(2, 16, 9, 10)]),
    "LGA, spatial": (lambda: fastattn.LocalGlobalAttention(16, 4, contraction="spatial"), lambda: [x(2, 16, 9, 10)]),
    "LGA, released": (lambda: fastattn.LocalGlobalAttention(16, 4, contraction="released"), lambda: [x(2, 16, 9, 10)]),
    "LGA, local": (lambda: fastattn.LocalGlobalAttention(16, 4, branches="local"), lambda: [x(2, 16, 9, 10)]),
}
INTERACTION_CASES: dict[str, Case] = {
    "ACP, concat": (lambda: fastattn.AggressiveConvPooling(16), lambda: [x(2, 16, 9, 10)]),
    "ACP, sum": (lambda: fastattn.AggressiveConvPooling(16, 3, aggregate="sum"), lambda: [x(2, 16, 9, 10)]),
    "CAT": (lambda: fastattn.ConceptualAttention(16, 8), lambda: [x(2, 40, 16)]),
    "ACP + CAT, class token": (
        lambda: fastattn.EnhancedInteraction(16, num_prefix_tokens=1), lambda: [x(2, 43, 16), (6, 7)],
    ),
}  # fmt: skip
# few channels in, many inside: two convolutions cost less than the one that they could be
CFSAM_CASES: dict[str, Case] = {
    "CFSAM": (
        lambda: fastattn.CFSAM((16, 8), dim=64, num_heads=4), lambda: [[x(2, 16, 7, 7), x(2, 8, 3, 3)]],
    ),
    "CFSAM, padded, two blocks": (
        lambda: fastattn.CFSAM((16, 8), dim=64, num_heads=4, num_parts=3, depth=2, fusion=False, local=False),
        lambda: [[x(1, 16, 7, 7), x(1, 8, 2, 2)]],
    ),
}  # fmt: skip
CASES = SCSA_CASES | LGA_CASES | INTERACTION_CASES | CFSAM_CASES


def count(case: Case, backend: str, backward: bool, mode: Callable = FakeTensorMode) -> int:
    """Count a module's forward, or forward and backward, by default without its arithmetic."""
    make, inputs = case
    with mode(), fastattn.use_backend(backend):
        module, given = make(), inputs()
        with FlopCounterMode(display=False) as counter:
            out = module(*given)
            if backward:
                outs = out if isinstance(out, list) else [out]
                torch.autograd.backward(outs, [torch.ones_like(each) for each in outs])
    return counter.get_total_flops()


def attention(case: Case) -> int:
    """Count torch's attention alone in a module's forward."""
    make, inputs = case
    with FakeTensorMode(), fastattn.use_backend("native"), FlopCounterMode(display=False) as counter:
        make()(*inputs())
    return counter.get_flop_counts()["Global"].get(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, 0)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have Triton's operators called for tensors on the CPU, where fake ones need no kernel."""
    pytest.importorskip("triton")
    monkeypatch.setitem(backends.BACKENDS, "triton", lambda call: [])
    backends._choose.cache_clear()
    yield "triton"
    backends._choose.cache_clear()


def test_every_registered_operator_has_a_formula() -> None:
    flops.join()
    registered = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if "fastattn::" in name}
    counted = {str(packet).replace(".", "::") for packet in flop_registry if str(packet).startswith("fastattn.")}
    defined = {f"fastattn::{name}_{way}" for name in flops.DEFINITIONS for way in ("forward", "backward")}
    assert registered == counted == defined


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward + backward"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_native_counts_what_eager_counts(case: Case, backward: bool, native) -> None:
    again = attention(case) // 2 if backward else 0  # torch's attention forms the scores again
    assert count(case, "native", backward) == count(case, "reference", backward) + again


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward + backward"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_triton_counts_what_eager_counts(case: Case, backward: bool, triton: str) -> None:
    again = 0
    if backward and case in LGA_CASES.values():  # all but the last convolution runs again
        again = count(case, "reference", False) - 2 * 2 * 16 * 16 * 9 * 10 + attention(case) // 2
    assert count(case, triton, backward) == count(case, "reference", backward) + again


def test_counts_of_what_is_computed(native) -> None:
    case = SCSA_CASES["SCSA, heads"]
    means, pixels, kernels = 2 * 16 * (14 + 15), 2 * 2, 3 + 5 + 7 + 9
    convolutions = 2 * means * kernels // 4 + 3 * 2 * 2 * 16 * pixels
    products = 2 * 2 * 2 * 16 * 8 * pixels
    assert count(case, "native", False, torch.no_grad) == convolutions + products
    assert count(case, "native", True, torch.enable_grad) == count(case, "reference", True, torch.enable_grad)


@pytest.mark.parametrize("name", ["SCSA, heads", "LGA", "ACP, concat", "CAT"])
@pytest.mark.parametrize("frozen", ["x", "parameters"])
def test_gradients_that_nobody_wants_count_nothing(name: str, frozen: str, native) -> None:
    make, inputs = case = CASES[name]

    def module() -> nn.Module:
        return make().requires_grad_(frozen == "x")

    def given() -> Sequence:
        return [t.requires_grad_(frozen != "x") if isinstance(t, Tensor) else t for t in inputs()]

    counts = {backend: count((module, given), backend, True) for backend in ("native", "reference")}
    assert counts["native"] == counts["reference"] < count(case, "reference", True)


def test_folded_convolutions_count_as_they_run() -> None:
    def case(local: bool) -> Case:
        return lambda: fastattn.CFSAM((32,), dim=16, num_heads=1, local=local), lambda: [[x(1, 32, 8, 8)]]

    pixels, taps = 64, 9
    folded = 2 * (pixels * taps * 32 * 16 + taps * 32 * 32 * 16)
    apart = 2 * pixels * 32 * (taps * 32 + 16)
    assert count(case(True), "native", False) - count(case(False), "native", False) == folded - 2 * pixels * 32 * 16
    assert folded < apart
    with FakeTensorMode():
        make, inputs = case(True)
        assert 2 * multiply_adds(make(), *inputs()) == count(case(True), "reference", False)


def test_a_counter_around_a_counter_counts_once(native) -> None:
    module, given = fastattn.SCSA(8), torch.randn(1, 8, 7, 7)
    with FlopCounterMode(display=False) as outer, FlopCounterMode(display=False) as inner:
        module(given)
    assert outer.get_total_flops() == inner.get_total_flops() > 0


def test_symbolic_sizes_count_nothing_and_are_not_guarded() -> None:
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    environment, real = ShapeEnv(), torch.empty(2, 8, 16)
    context = StatelessSymbolicContext([DimDynamic.STATIC, DimDynamic.DYNAMIC, DimDynamic.STATIC])
    with FakeTensorMode(shape_env=environment) as fakes:
        q = fakes.from_tensor(real, symbolic_context=context)
        assert isinstance(q.shape[1], torch.SymInt)
        assert flops.flops("partition_attention_forward", q, q, q, 2, 1) == 0
    assert not environment.guards


@pytest.mark.parametrize(
    "before", few(["", f"import {flops.COUNTER}"]), ids=["the counter is imported later", "before"]
)
def test_formulas_join_the_counter_whenever_it_is_imported(before: str) -> None:
    lines = [
        "import sys, torch",
        before,
        "import fastattn",
        f"light = {flops.COUNTER!r} not in sys.modules",
        "from torch.utils.flop_counter import FlopCounterMode",
        "module, x = fastattn.SCSA(8), torch.zeros(1, 8, 7, 7)",
        "with FlopCounterMode(display=False) as counter: module(x)",
        "with FlopCounterMode(display=False) as eager, fastattn.use_backend('reference'): module(x)",
        "print(light, counter.get_total_flops() == eager.get_total_flops() > 0)",
    ]
    out = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(not before), "True"]


def test_multiply_adds_of_known_models() -> None:
    pytest.importorskip("timm")
    from fastattn import models

    image = torch.empty(1, 3, 224, 224)
    plain = multiply_adds(models.create("resnet50"), image)
    assert 4.085e9 < plain < 4.115e9
    attentive = multiply_adds(models.create("resnet50", attention="scsa"), image)
    assert plain < attentive < 1.01 * plain
    assert multiply_adds(models.create("resnet50"), image.expand(2, -1, -1, -1)) == 2 * plain


def test_multiply_adds_of_a_detectors_backbone_and_head() -> None:
    pytest.importorskip("torchvision")
    from fastattn import models
    from fastattn.bench.networks import Detector

    image = torch.empty(1, 3, 300, 300)
    plain, attentive = (
        multiply_adds(Detector(models.create("ssd300_vgg16", attention=name, num_classes=21)), image)
        for name in (None, "cfsam")
    )
    assert 31.2e9 < plain < 31.5e9
    assert attentive > plain


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_multiply_adds_do_not_depend_on_the_backend(backend: str) -> None:
    module = fastattn.CFSAM((64, 32), dim=32, num_heads=2)
    maps = [torch.empty(1, 64, 8, 8), torch.empty(1, 32, 4, 4)]
    with fastattn.use_backend("reference"), FlopCounterMode(display=False) as counter:
        module(maps)
    with fastattn.use_backend(backend):
        assert 2 * multiply_adds(module, maps) == counter.get_total_flops()
        assert fastattn.get_backend() == backend


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_multiply_adds_of_torchs_attention(training: bool) -> None:
    """It has a fast path that torch does not count."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).train(training)
    linear, products = 2 * 10 * (4 * 32 * 32 + 2 * 32 * 64), 2 * 2 * 10 * 10 * 32
    assert multiply_adds(layer, torch.empty(2, 10, 32)) == linear + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_multiply_adds_leave_the_model_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert multiply_adds(model, torch.ones(2, 3, 8, 8)) == 2 * 4 * 36 * 27
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
