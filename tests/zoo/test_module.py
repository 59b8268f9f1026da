"""The zoo's modules: against their own layers in float64, output and every gradient; as timm's; as drop-in modules."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import fastattn
from fastattn import zoo
from fastattn.core.operation import decompositions
from fastattn.zoo import simam
from fastattn.zoo.description import saved_size
from fastattn.zoo.functional import gate, gate_of_batch
from fastattn.zoo.module import Gate
from fastattn.zoo.operation import GATES
from tests.helpers import DTYPES, FORMATS, check, draw, few, named, randomize

pytestmark = pytest.mark.cpu

# what makes a module, and a map for it
CASES = {
    "SE": (lambda: zoo.SEModule(48), (3, 48, 9, 11)),
    "SE, no bias, SiLU, hard sigmoid": (
        lambda: zoo.SEModule(20, 1 / 4, rd_divisor=1, bias=False, act_layer=nn.SiLU, gate_layer=nn.Hardsigmoid),
        (2, 20, 5, 3),
    ),
    "SE, more weights than pixels": (lambda: zoo.SEModule(136, 1 / 2), (5, 136, 2, 3)),
    "effective SE": (lambda: zoo.EffectiveSEModule(21), (2, 21, 8, 9)),
    "ECA": (lambda: zoo.ECA(300), (2, 300, 5, 7)),
    "ECA, kernel 9, few channels": (lambda: zoo.ECA(None, 9), (3, 5, 10, 10)),
    "FCA": (lambda: zoo.FcaLayer(48, 9, 11), (3, 48, 9, 11)),
    "FCA, pooled": (lambda: zoo.FcaLayer(32, 7, 7, freq_sel_method="top4"), (2, 32, 17, 12)),
    "SimAM": (lambda: zoo.SimAM(), (3, 37, 9, 11)),
    "SimAM, lambda": (lambda: zoo.SimAM(e_lambda=0.1), (2, 16, 4, 4)),
    "coordinate attention": (lambda: zoo.CoordAtt(48), (3, 48, 9, 11)),
    "coordinate attention, hidden 12": (lambda: zoo.CoordAtt(40, reduction=3), (2, 40, 20, 5)),
    "ELA": (lambda: zoo.ELA(48), (3, 48, 9, 11)),
    "ELA, kernel 3, two groups": (lambda: zoo.ELA(18, 3, 2), (2, 18, 4, 21)),
    "CBAM": (lambda: zoo.CBAM(48), (3, 48, 9, 11)),
    "CBAM, kernel 3, biases": (lambda: zoo.CBAM(20, 1 / 4, spatial_kernel_size=3, mlp_bias=True), (2, 20, 18, 5)),
    "CBAM, four vectors of channels": (lambda: zoo.CBAM(256), (2, 256, 5, 4)),
    "shuffle attention": (lambda: zoo.ShuffleAttention(48, 8), (3, 48, 9, 11)),
    "shuffle attention, odd half": (lambda: zoo.ShuffleAttention(42, 7), (2, 42, 6, 5)),
}
NORMALISED = [case for case in CASES if case.startswith(("coordinate", "CBAM"))]
LAYERS = {"EMA": (lambda: zoo.EMA(64), (2, 64, 9, 11)), "CPCA": (lambda: zoo.CPCA(16), (2, 16, 9, 11))}


def made(case, dtype=torch.float32, memory_format=torch.contiguous_format, *, training=True):
    """Return a case's module with random parameters and running statistics, and its map."""
    make, shape = (CASES | LAYERS)[case]
    module = randomize(make())
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=torch.Generator().manual_seed(3)))
            part.running_var.copy_(torch.rand(part.num_features, generator=torch.Generator().manual_seed(4)) + 0.5)
    return module.train(training).to(dtype), draw(*shape, dtype=dtype, memory_format=memory_format)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("case", CASES)
def test_numbers(case, dtype, memory_format):
    module, x = made(case, dtype, memory_format)
    got = check(module, x, "native")
    assert got["out"].stride() == got["grad_x"].stride() == x.stride()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("dtype", few(DTYPES), ids=named)
@pytest.mark.parametrize("case", NORMALISED)
def test_numbers_by_running_statistics(case, dtype, memory_format):
    check(*made(case, dtype, memory_format, training=False), "native")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_description_is_what_the_layers_compute(case, training):
    module, x = made(case, torch.float64, training=training)
    twin = copy.deepcopy(module)
    torch.testing.assert_close(module(x), twin._through_children(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("case", ["coordinate attention", "CBAM"])
def test_running_statistics_are_those_of_the_layers(case, momentum):
    module, x = made(case)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = momentum
    twin = copy.deepcopy(module).double()
    for step in range(3):
        with torch.set_grad_enabled(step != 1):
            module(x + step)
            twin._through_children((x + step).double())
    for name, found in module.named_buffers():
        torch.testing.assert_close(found.double(), twin.get_buffer(name).double(), rtol=1e-4, atol=1e-5, msg=name)


def timms(name, *arguments, **options):
    layers = pytest.importorskip("timm.layers")
    return getattr(layers.cbam if name == "CbamModule" else layers, name)(*arguments, **options)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(lambda: zoo.SEModule(48), lambda: timms("SEModule", 48), id="SE"),
        pytest.param(
            lambda: zoo.SEModule(96, 1 / 4, rd_divisor=1, bias=False, act_layer=nn.SiLU),
            lambda: timms("SEModule", 96, 1 / 4, rd_divisor=1, bias=False, act_layer=nn.SiLU),
            id="SE, options",
        ),
        pytest.param(lambda: zoo.EffectiveSEModule(24), lambda: timms("EffectiveSEModule", 24), id="effective SE"),
        pytest.param(lambda: zoo.ECA(256), lambda: timms("EcaModule", 256), id="ECA"),
        pytest.param(lambda: zoo.ECA(kernel_size=5), lambda: timms("EcaModule", kernel_size=5), id="ECA, kernel"),
        pytest.param(lambda: zoo.CBAM(32), lambda: timms("CbamModule", 32), id="CBAM"),
        pytest.param(
            lambda: zoo.CBAM(64, 1 / 8, spatial_kernel_size=3, mlp_bias=True),
            lambda: timms("CbamModule", 64, 1 / 8, spatial_kernel_size=3, mlp_bias=True),
            id="CBAM, options",
        ),
    ],
)
def test_it_is_timms(ours, theirs):
    module, theirs = ours().double(), randomize(theirs()).double()
    assert module.state_dict().keys() == theirs.state_dict().keys()
    module.load_state_dict(theirs.state_dict())
    channels = next(p.shape[1] for p in module.parameters()) if module.channels else 256
    x = draw(2, channels, 7, 9, dtype=torch.float64)
    for training in (False, True):
        torch.testing.assert_close(module.train(training)(x), theirs.train(training)(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: zoo.CoordAtt(32, 32), ["conv1", "bn1", "conv_h", "conv_w"]),
        (lambda: zoo.ELA(32), ["conv", "gn"]),
        (lambda: zoo.ShuffleAttention(64, 16), ["cweight", "cbias", "sweight", "sbias", "gn"]),
        (lambda: zoo.FcaLayer(64, 56, 56), ["dct_layer", "fc"]),
        (lambda: zoo.SimAM(64), []),
        (lambda: zoo.EMA(64), ["gn", "conv1x1", "conv3x3"]),
        (
            lambda: zoo.CPCA(16, 16),
            ["ca", "conv", *(f"dconv{k}" for k in ("5_5", "1_7", "7_1", "1_11", "11_1", "1_21", "21_1"))],
        ),
    ],
)
def test_state_dicts_have_the_authors_names(make, names):
    assert {key.partition(".")[0] for key in make().state_dict()} == set(names)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("case", few(["SE", "CBAM", *(case for case in CASES if case not in ("SE", "CBAM"))], 2))
def test_the_graph_of_a_compiled_call_has_no_break(case):
    for training in (False, True):
        torch._dynamo.reset()  # else the modules of all cases count against the limit of one function
        module, x = made(case, training=training)
        compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.usefixtures("native")
def test_a_compiled_training_step_is_the_eager_one():
    module, x = made("coordinate attention")
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for forward in (module, compiled):
        forward(x).square().sum().backward()
    for (name, one), other in zip(module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=named)
@pytest.mark.parametrize("case", CASES)
def test_autocast_gives_the_dtype_of_eager(case, dtype):
    module, x = made(case)
    x = x.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected, out = copy.deepcopy(module)._through_children(x), module(x)
    assert out.dtype == expected.dtype
    assert float((out - expected).detach().float().norm() / expected.detach().float().norm()) < 0.05
    out.float().sum().backward()
    assert x.grad.dtype == dtype
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    "case", ["SE", "ECA", "FCA", "SimAM", "coordinate attention", "ELA", "CBAM", "shuffle attention"]
)
def test_what_is_kept_for_backward_is_x_and_little_more(case):
    module, _ = made(case)
    x = draw(2, 48, 28, 28, memory_format=torch.channels_last).requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        module(x)
    own = {p.data_ptr() for p in (*module.parameters(), *module.buffers())}
    assert (
        sum(t.numel() for address, t in kept.items() if address not in own)
        <= 1.1 * x.numel() + (case == "FCA") * 48 * 784
    )


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("case", CASES)
def test_the_space_that_the_fake_allots_is_the_extensions(case):
    module, x = made(case)
    params, program, numbers = (
        module.parameters_in_order(),
        module.description.program_of_batch,
        module.description.numbers,
    )
    if module.description.pool == "weighted":
        params[0] = params[0].new_ones(x.shape[1:])
    out, kept = GATES.forward(x, params, program, numbers, True)
    assert kept.shape == (saved_size(x.shape, program),)
    assert out.shape == x.shape


def test_a_hook_on_a_child_is_called():
    module, x = made("SE")
    seen = []
    module.fc1.register_forward_hook(lambda *arguments: seen.append(1))
    expected = made("SE")[0](x)
    torch.testing.assert_close(module(x), expected)
    assert seen
    with pytest.raises(RuntimeError, match="a child of the module has hooks"), fastattn.use_backend("native"):
        module(x)


def test_what_has_no_fast_path_says_so():
    for case in LAYERS:
        module, x = made(case)
        assert module(x).shape == x.shape
        with pytest.raises(RuntimeError, match="there is no kernel yet"), fastattn.use_backend("native"):
            module(x)
        assert "native: there is no kernel yet" in fastattn.explain(module, x)


def test_explain_names_the_gate():
    assert fastattn.explain(*made("ELA")).startswith("gates on cpu, float32: served by")


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch(case):
    module, x = made(case, training=False)
    assert module(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.CoordAtt(16, 32), "oup must be inp"),
        (lambda: zoo.ELA(16, 4), "kernel_size must be odd, got 4"),
        (lambda: zoo.ECA(None, 4), "kernel_size must be odd, got 4"),
        (lambda: zoo.CBAM(16, spatial_kernel_size=2), "spatial_kernel_size must be odd, got 2"),
        (lambda: zoo.ShuffleAttention(33), "channels must be even, got 33"),
        (lambda: zoo.FcaLayer(24, 7, 7), "divisible by the 16 frequencies"),
        (lambda: zoo.FcaLayer(32, 7, 5), "at least 7, got 7 and 5"),
        (lambda: zoo.FcaLayer(32, 7, 7, freq_sel_method="low16"), "freq_sel_method must be one of"),
        (lambda: zoo.SEModule(16, act_layer=nn.GELU), "unknown activation: GELU"),
        (lambda: zoo.CPCA(16, 8), "out_channels must be channels"),
        (lambda: zoo.SEModule(16)(torch.ones(1, 8, 4, 4)), "x has 8 channels, expected 16"),
        (lambda: zoo.SimAM()(torch.ones(8, 4, 4)), "x must have 4 dimensions"),
        (lambda: zoo.ECA(16)(torch.ones(1, 16, 4, 4, dtype=torch.int64)), "real floating point"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_new_gate_is_a_description_and_its_layers():
    assert len(Path(simam.__file__).read_text().splitlines()) < 60
    assert issubclass(zoo.SimAM, Gate)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("case", CASES)
def test_gradients_twice_are_refused(case):
    module, x = made(case)
    out = module(x.requires_grad_())
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("case", few(["CBAM", "FCA", "coordinate attention", "shuffle attention"]))
def test_an_exported_gate_is_one_operator_or_standard_ones(case):
    module, x = made(case, training=False)
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
        targets = {node.target for node in program.graph.nodes}
        assert torch.ops.fastattn.gates_forward.default in targets
        taken_apart = program.run_decompositions(decompositions())
        assert "fastattn" not in str(taken_apart.graph)
        more = torch.cat([x, x.flip(0)])
        for exported in (program, taken_apart):
            torch.testing.assert_close(exported.module()(more), module(more), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_torch_fx_records_one_call(case, training):
    module, x = made(case, training=training)
    traced = torch.fx.symbolic_trace(nn.Sequential(module))
    wanted = gate_of_batch if training and case in NORMALISED else gate
    assert [node.target for node in traced.graph.nodes].count(wanted) == 1
    torch.testing.assert_close(traced(x), copy.deepcopy(module)(x))
