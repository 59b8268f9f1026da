"""The modules as drop-in replacements: constructors, state dicts, repr, and a clear error for bad input."""

import inspect

import pytest
import torch
from torch.nn.utils import parametrizations, prune

import fastattn
from fastattn import PCSA, SCSA, SMSA, functional
from tests.helpers import draw, make

pytestmark = pytest.mark.triton

SPATIAL = {
    **{
        f"{name}.weight": (8, 1, k)
        for name, k in zip(("local_dwc", "global_dwc_s", "global_dwc_m", "global_dwc_l"), (3, 5, 7, 9), strict=True)
    },
    **{f"{name}.bias": (8,) for name in ("local_dwc", "global_dwc_s", "global_dwc_m", "global_dwc_l")},
    **{f"{name}.{kind}": (32,) for name in ("norm_h", "norm_w") for kind in ("weight", "bias")},
}
CHANNEL = {"norm.weight": (32,), "norm.bias": (32,), **{f"{name}.weight": (32, 1, 1, 1) for name in "qkv"}}
BIASES = {f"{name}.bias": (32,) for name in "qkv"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        pytest.param(lambda: SCSA(32), SPATIAL | CHANNEL, id="SCSA"),
        pytest.param(lambda: SCSA(32, qkv_bias=True), SPATIAL | CHANNEL | BIASES, id="SCSA with bias"),
        pytest.param(
            lambda: SCSA(32, window_size=3, down_sample_mode="recombination"),
            SPATIAL | CHANNEL | {"conv_d.weight": (32, 288, 1, 1)},
            id="SCSA with recombination",
        ),
        pytest.param(lambda: SMSA(32), SPATIAL, id="SMSA"),
        pytest.param(lambda: PCSA(32), CHANNEL, id="PCSA"),
        pytest.param(lambda: PCSA(32, qkv_bias=True), CHANNEL | BIASES, id="PCSA with bias"),
    ],
)
def test_state_dict(module, expected):
    assert {name: tuple(tensor.shape) for name, tensor in module().state_dict().items()} == expected


def test_sixteen_parameters_per_channel():
    assert sum(p.numel() for p in SCSA(64).parameters()) == 16 * 64


def test_positional_order_is_the_authors():
    names = {cls: list(inspect.signature(cls).parameters) for cls in (SCSA, SMSA, PCSA)}
    assert names[SCSA] == [
        "dim",
        "head_num",
        "window_size",
        "group_kernel_sizes",
        "qkv_bias",
        "fuse_bn",
        "norm_cfg",
        "act_cfg",
        "down_sample_mode",
        "attn_drop_ratio",
        "gate_layer",
    ]
    assert names[SMSA] == ["dim", "group_kernel_sizes", "gate_layer"]
    assert names[PCSA] == [
        "dim",
        "head_num",
        "window_size",
        "qkv_bias",
        "down_sample_mode",
        "attn_drop_ratio",
        "gate_layer",
    ]


def test_defaults_are_the_authors():
    module = SCSA(8)
    assert (module.head_num, module.window_size, module.group_kernel_sizes) == (1, 7, (3, 5, 7, 9))
    assert (module.qkv_bias, module.down_sample_mode, module.gate_layer) == (False, "avg_pool", "sigmoid")
    assert module.attn_drop_ratio == 0.0
    assert [norm.num_groups for norm in (module.norm_h, module.norm_w, module.norm)] == [4, 4, 1]


def test_options_without_effect_are_accepted():
    torch.manual_seed(0)
    plain = SCSA(8)
    torch.manual_seed(0)
    other = SCSA(8, 1, 7, (3, 5, 7, 9), False, True, {"type": "BN"}, {"type": "ReLU"})
    x = draw(2, 8, 7, 7)
    assert torch.equal(plain(x), other(x))


def test_repr_names_every_option():
    text = repr(SCSA(32, 4, -1, (5, 3, 9, 7), qkv_bias=True, down_sample_mode="max_pool", gate_layer="softmax"))
    for part in (
        "SCSA(",
        "32, head_num=4",
        "window_size=-1",
        "(5, 3, 9, 7)",
        "qkv_bias=True",
        "'max_pool'",
        "'softmax'",
    ):
        assert part in text
    assert "group_kernel_sizes=(3, 5, 7, 9), gate_layer='sigmoid'" in repr(SMSA(32))
    assert "8, head_num=1, window_size=7, qkv_bias=False" in repr(PCSA(8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: SCSA(30), "divisible by the 4 channel groups, got 30", id="dim not a multiple of 4"),
        pytest.param(lambda: SMSA(6), "divisible by the 4 channel groups, got 6", id="dim that dim // 4 lets through"),
        pytest.param(lambda: SMSA(0), "got 0", id="no channels"),
        pytest.param(
            lambda: SCSA(32, head_num=5), "divisible by head_num, got 32 and 5", id="heads that do not divide"
        ),
        pytest.param(lambda: PCSA(32, head_num=0), "divisible by head_num, got 32 and 0", id="no heads"),
        pytest.param(
            lambda: SCSA(32, group_kernel_sizes=(3, 4, 7, 9)),
            r"odd sizes, got \(3, 4, 7, 9\)",
            id="even kernel",
        ),
        pytest.param(lambda: SMSA(32, (3, 5, 7)), "four odd sizes", id="three kernels"),
        pytest.param(lambda: SMSA(32, (3, 5, 7, -1)), "four odd sizes", id="negative kernel"),
        pytest.param(lambda: SCSA(32, window_size=0), "window_size must be positive", id="window zero"),
        pytest.param(lambda: PCSA(32, window_size=-2), "window_size must be positive", id="window below -1"),
        pytest.param(lambda: SCSA(32, down_sample_mode="mean"), "got 'mean'", id="unknown mode"),
        pytest.param(lambda: SCSA(32, gate_layer="relu"), "got 'relu'", id="unknown gate"),
        pytest.param(lambda: SMSA(32, gate_layer="tanh"), "got 'tanh'", id="unknown gate of SMSA"),
        pytest.param(
            lambda: PCSA(32, window_size=-1, down_sample_mode="recombination"),
            "needs a window",
            id="recombining nothing",
        ),
        pytest.param(lambda: PCSA(32, attn_drop_ratio=1.5), "between 0 and 1, got 1.5", id="dropout above one"),
    ],
)
def test_bad_constructor_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["scsa", "smsa", "pcsa"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        pytest.param(torch.zeros(16, 14, 14), "4 dimensions", id="no batch"),
        pytest.param(torch.zeros(2, 3, 16, 14, 14), "4 dimensions", id="five dimensions"),
        pytest.param(torch.zeros(2, 8, 14, 14), "8 channels, expected 16", id="other channels"),
        pytest.param(
            torch.zeros(2, 16, 14, 14, dtype=torch.int64),
            "real floating point, got torch.int64",
            id="integer",
        ),
        pytest.param(torch.zeros(2, 16, 14, 14, dtype=torch.complex64), "got torch.complex64", id="complex"),
        pytest.param(torch.zeros(2, 16, 0, 14), "0 x 14", id="no rows"),
    ],
)
def test_bad_input(name, x, message, backend):
    with pytest.raises(ValueError, match=message):
        make(name, 16)(x)


@pytest.mark.parametrize("name", ["scsa", "pcsa"])
@pytest.mark.parametrize("mode", ["avg_pool", "max_pool", "recombination"])
@pytest.mark.parametrize("size", [(6, 14), (14, 6)], ids=["height", "width"])
def test_map_below_the_window(name, mode, size):
    with pytest.raises(ValueError, match=rf"x is {size[0]} x {size[1]}, smaller than the 7 x 7 window"):
        make(name, 16, down_sample_mode=mode)(torch.zeros(2, 16, *size))


@pytest.mark.parametrize("name", ["scsa", "smsa", "pcsa"])
def test_empty_batch(name, backend):
    module, x = make(name, 16), torch.zeros(0, 16, 14, 15, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.abs().max() == 0 for p in module.parameters())


def test_functional_checks_its_parameters():
    c, half = torch.ones(16), torch.ones(8)
    norm, qkv = (c, c), [torch.ones(16, 1, 1, 1)] * 3
    x = draw(2, 16, 7, 7)
    functional.pcsa(x, norm, qkv)
    with pytest.raises(ValueError, match=r"the bias of norm has shape \(8,\), expected \(16,\)"):
        functional.pcsa(x, (c, half), qkv)
    with pytest.raises(ValueError, match="parameters of shapes"):
        functional.pcsa(x, norm, qkv[:2])
    with pytest.raises(ValueError, match="conv_d_weight of shape None"):
        functional.pcsa(x, norm, qkv, down_sample_mode="recombination")
    with pytest.raises(ValueError, match="conv_d_weight of shape"):
        functional.pcsa(x, norm, qkv, conv_d_weight=c)
    with pytest.raises(ValueError, match="four odd sizes"):
        functional.smsa(x, [torch.ones(4, 1, 2)] * 4, [torch.ones(4)] * 4, norm, norm)
    with pytest.raises(ValueError, match="divisible by head_num"):
        functional.pcsa(x, norm, qkv, head_num=3)


def test_options_may_be_changed_later():
    module, x = make("scsa", 8), draw(2, 8, 14, 14)
    module.window_size = 3
    assert torch.equal(module(x), make("scsa", 8, window_size=3)(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_module_follows_to(dtype):
    assert SCSA(8).to(dtype)(draw(2, 8, 7, 7, dtype=dtype)).dtype == dtype


def test_computed_parameters(backend):
    """Pruned and parametrized submodules have no plain parameter of that name; their value is used."""
    x = draw(2, 8, 7, 7)
    module = make("scsa", 8)
    before = module(x)
    prune.identity(module.q, "weight")
    parametrizations.weight_norm(module.local_dwc)
    torch.testing.assert_close(module(x), before)
    module(x).sum().backward()
    assert module.q.weight_orig.grad is not None
    assert all(p.grad is not None for p in module.local_dwc.parameters())


def test_public_names():
    assert vars(fastattn).keys() >= {
        "SCSA",
        "SMSA",
        "PCSA",
        "functional",
        "explain",
        "available_backends",
        "__version__",
    }
