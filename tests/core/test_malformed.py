"""What is no tensor, or of another shape than an operation's parameters have, is refused by name."""

import pytest
import torch

import fastattn
from fastattn import functional
from tests.core.test_guards import MODULES, make
from tests.helpers import FORMATS, named


@pytest.mark.parametrize("x", [None, [torch.zeros(2, 16, 14, 14)], 3, "x"], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", [name for name in MODULES if name != "cfsam"])
def test_what_is_no_tensor_is_no_input(name, x):
    with pytest.raises(TypeError, match=f"x must be a tensor, got {type(x).__name__}"):
        make(name)[0](x)


def test_what_is_no_list_of_tensors_is_no_pyramid():
    module, maps = make("cfsam")
    for found in (None, 3, iter(maps)):
        with pytest.raises(
            ValueError, match=f"expected a list of 2 maps, one for each level, got {type(found).__name__}"
        ):
            module(found)
    with pytest.raises(TypeError, match="level 1 must be a tensor, got NoneType"):
        module([maps[0], None])


def cfsam(field, value, level=False):
    """Call CFSAM's functional with another parameter of its first block or level."""
    module, maps = make("cfsam")
    levels, blocks = module.operands()
    given = levels if level else blocks
    given[0] = given[0]._replace(**{field: value})
    return functional.cfsam(maps, levels, blocks, num_heads=2)


WEIGHT = torch.zeros(32, 32)
SCSA = {"norm": [torch.ones(16)] * 2, "qkv_weights": [torch.ones(16, 1, 1, 1)] * 3}
SPATIAL = {"conv_weights": [torch.ones(4, 1, 3)] * 4, "conv_biases": [torch.ones(4)] * 4}
SPATIAL |= {"norm_h": [torch.ones(16)] * 2, "norm_w": [torch.ones(16)] * 2}
MALFORMED = {
    "k.bias of 7": (lambda: cfsam("k", (WEIGHT, torch.zeros(7))), ValueError, "bias of a block's k has shape"),
    "k.bias of one": (lambda: cfsam("k", (WEIGHT, torch.zeros(1))), ValueError, "bias of a block's k has shape"),
    "mlp bias of one": (lambda: cfsam("mlp_in", (WEIGHT, torch.zeros(1))), ValueError, "bias of a block's mlp_in"),
    "no fusion": (lambda: cfsam("fuse", (None, None), level=True), TypeError, "weight of a level's fuse must be"),
    "a flat weight": (lambda: cfsam("project", (WEIGHT, None), level=True), ValueError, "project must have 4 dim"),
    "no levels": (lambda: functional.cfsam([], [], []), ValueError, "levels is empty"),
    "norm of nothing": (
        lambda: functional.pcsa(make("pcsa")[1], **SCSA | {"norm": [torch.ones(16)]}),
        TypeError,
        "norm must be a weight and a bias",
    ),
    "a weight that is none": (
        lambda: functional.pcsa(make("pcsa")[1], **SCSA | {"qkv_weights": [None] * 3}),
        TypeError,
        "parameter 2 must be a tensor",
    ),
    "a scalar convolution": (
        lambda: functional.smsa(make("smsa")[1], **SPATIAL | {"conv_weights": [torch.ones(())] * 4}),
        ValueError,
        "weight of conv_weights must have 3 dimensions",
    ),
    "flat scores": (
        lambda: functional.conceptual_attention(make("cat")[1], torch.ones(16), *[(WEIGHT, None)] * 2),
        ValueError,
        "weight of score must have 2 dimensions",
    ),
    "convolutions of one dimension": (
        lambda: functional.aggressive_conv_pooling(
            make("acp")[1], [(torch.ones(16, 1, 3), None)], (torch.ones(16, 32, 1, 1), None)
        ),
        ValueError,
        "weight of convs must have 4 dimensions",
    ),
    "no projection": (
        lambda: functional.aggressive_conv_pooling(make("acp")[1], [(torch.ones(16, 1, 3, 3), None)], None),
        TypeError,
        "proj must be a weight and a bias",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_parameter_is_refused(case, backend):
    call, error, text = MALFORMED[case]
    with fastattn.use_backend(backend), pytest.raises(error, match=text):
        call()


LGA = {
    "a branch of nothing": ("branches", lambda branches: [branches[0]._replace(convs=[])], "convs and one alpha"),
    "two alphas": ("branches", lambda branches: [branches[0]._replace(alpha=torch.ones(2))], "convs and one alpha"),
    "no branches": ("branches", lambda branches: [], "branches is empty"),
    "a flat encoding": ("position_encoding", torch.flatten, "position_encoding must have 4 dimensions"),
    "a flat scale": (
        "scales",
        lambda scales: [s._replace(pointwise=(WEIGHT, None)) for s in scales],
        "scales must have",
    ),
    "no output": ("out_conv", lambda affine: None, "out_conv must be a weight and a bias"),
}


@pytest.mark.parametrize("case", LGA)
def test_a_malformed_parameter_of_lga_is_refused(case):
    module, x = make("lga")
    names = ("scales", "scale_attention", "position_encoding", "branches", "out_conv")
    given = dict(zip(names, module.operands(), strict=True))
    field, change, text = LGA[case]
    with pytest.raises((TypeError, ValueError), match=text):
        functional.local_global_attention(x, **given | {field: change(given[field])}, num_heads=4)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_a_pyramid_of_one_hidden_channel_keeps_its_formats(memory_format, depth):
    maps = [t.contiguous(memory_format=memory_format) for t in (torch.randn(2, 8, 4, 6), torch.randn(2, 16, 2, 3))]
    for out in fastattn.CFSAM([8, 16], 1, num_heads=1, depth=depth)(maps):
        assert out.is_contiguous(memory_format=memory_format)
