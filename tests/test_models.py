"""fastattn.models: where the attention goes, what it adds, and that every backend agrees in a whole model."""

import copy
import sys

import pytest
import torch
from torch import nn

import fastattn
from fastattn.bench.photographs import photographs

from .helpers import DEVICE, FORMATS, INTERPRETED, assert_accurate, named, run

pytest.importorskip("timm")

from fastattn import models

ATTENTIONS = fastattn.SCSA, fastattn.LocalGlobalAttention, fastattn.EnhancedInteraction


def parameters_in_millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


# The paper's Table 2, in millions; for MobileNetV2 the paper prints 3.51 and 3.63.
@pytest.mark.parametrize(
    ("name", "without", "with_scsa"),
    [("resnet50", 25.56, 25.62), ("resnet101", 44.55, 44.68), ("mobilenetv2_100", 3.50, 3.62)],
)
def test_parameter_counts_are_the_papers(name: str, without: float, with_scsa: float) -> None:
    with torch.device("meta"):
        assert round(parameters_in_millions(models.create(name)), 2) == without
        assert round(parameters_in_millions(models.create(name, attention="scsa")), 2) == with_scsa


@pytest.mark.parametrize(
    ("name", "blocks", "widths"),
    [
        pytest.param("resnet50", 16, {64, 128, 256, 512}, id="bottlenecks: the middle channels"),
        pytest.param("resnet18", 8, {64, 128, 256, 512}, id="basic blocks: the first convolution's channels"),
        pytest.param(
            "mobilenetv2_100", 17, {32, 96, 144, 192, 384, 576, 960}, id="inverted residuals: hidden channels"
        ),
    ],
)
def test_every_block_has_one_attention_of_its_width(name: str, blocks: int, widths: set[int]) -> None:
    with torch.device("meta"):
        model = models.create(name, attention="scsa")
    found = [module for module in model.modules() if isinstance(module, fastattn.SCSA)]
    assert len(found) == blocks
    assert {module.norm.num_channels for module in found} == widths


def modules_in_order(model: nn.Module, x: torch.Tensor) -> list[nn.Module]:
    """The leaf modules and the attentions of a model in the order in which they run."""
    order: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, ATTENTIONS) or not any(True for _ in module.children()):
            module.register_forward_hook(lambda module, args, out: order.append(module))
    with torch.no_grad():
        model(x)
    return order


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        pytest.param(
            "resnet50", "layer2.1.act2", "layer2.1.conv3", id="between the ReLU and the last 1x1"
        ),
        pytest.param("resnet18", "layer2.1.act1", "layer2.1.conv2", id="before the second convolution"),
        pytest.param("mobilenetv2_100", "blocks.0.0.bn1", "blocks.0.0.conv_pw", id="first inverted residual"),
        pytest.param("mobilenetv2_100", "blocks.3.1.bn2", "blocks.3.1.conv_pwl", id="before the linear 1x1"),
    ],
)
def test_placement(name: str, before: str, after: str) -> None:
    model = models.create(name, attention="scsa").eval()
    parts = dict(model.named_modules())
    order = [
        part
        for part in modules_in_order(model, torch.randn(1, 3, 224, 224))
        if not isinstance(part, nn.Identity)
    ]
    # MobileNetV2's activation is a part of its normalisation, which hooks report after it.
    at = next(i for i, part in enumerate(order) if part is parts[after])
    assert isinstance(order[at - 1], fastattn.SCSA)
    assert order[at - 2] in (parts[before], getattr(parts[before], "act", None))


def with_scales(name: str, attention: str) -> nn.Module:
    """A model whose normalisations have random scales: or a block's output would hardly depend on its attention."""
    torch.manual_seed(0)
    model = models.create(name, attention=attention, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def assert_backends_agree(model: nn.Module, x: torch.Tensor) -> None:
    """That the logits of the fastest backend are as near to the exact ones as eager's."""
    with torch.no_grad():
        with fastattn.use_backend("reference"):
            eager = model(x)
            truth = copy.deepcopy(model).double()(x.double())
        with fastattn.use_backend("auto"):
            fast = model(x)

    def error(found: torch.Tensor) -> float:
        return float((found.double() - truth).norm() / truth.norm())

    assert error(fast) <= max(1e-5, 2 * error(eager))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050"])
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_backends_agree_in_a_whole_model(name: str, memory_format: torch.memory_format) -> None:
    model = with_scales(name, "scsa").eval().to(memory_format=memory_format)
    assert_backends_agree(model, torch.randn(2, 3, 224, 224).contiguous(memory_format=memory_format))


def test_state_dict_keeps_the_backbone_and_the_attentions_own_names() -> None:
    with torch.device("meta"):
        plain, ours = models.create("resnet18"), models.create("resnet18", attention="scsa")
    added = set(ours.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(ours.state_dict())
    own = {f"layer1.0.aa.{name}" for name in fastattn.SCSA(64).state_dict()}
    assert {name for name in added if name.startswith("layer1.0.")} == own


def test_attention_kwargs_reach_the_attention() -> None:
    with torch.device("meta"):
        model = models.create(
            "resnet18", attention="scsa", attention_kwargs={"head_num": 4, "qkv_bias": True}
        )
    assert "layer1.0.aa.q.bias" in model.state_dict()


def test_attention_may_be_any_callable_of_the_channels() -> None:
    with torch.device("meta"):
        in_blocks = models.create("resnet18", attention=nn.BatchNorm2d)
        at_the_end = models.create("mobilenetv3_small_100", attention=nn.BatchNorm2d)
    assert in_blocks.layer4[0].aa.num_features == 512
    assert at_the_end.blocks[-1].attention.num_features == 576


def test_attention_follows_the_backbones_dtype() -> None:
    model = models.create("mobilenetv2_035", attention="scsa", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["resnet51", "no_such_model", "vgg16"])
def test_unknown_backbone_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown backbone '{name}'.*mobilenetv2_100.*resnet50"):
        models.create(name, attention="scsa")


def test_unknown_attention_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no attention 'selfish' for 'resnet18', which takes lga, pcsa, scsa, smsa"):
        models.create("resnet18", attention="selfish")


def test_mobilenetv3_has_no_place_for_scsa() -> None:
    with pytest.raises(ValueError, match=r"no attention 'scsa' for 'mobilenetv3_small_100', which takes lga$"):
        models.create("mobilenetv3_small_100", attention="scsa")


def test_an_attention_on_pyramids_does_not_fit_a_classifier() -> None:
    with pytest.raises(ValueError, match=r"no attention 'cfsam' for 'resnet50', which takes lga, pcsa, scsa, smsa"):
        models.create("resnet50", attention="cfsam")
    with pytest.raises(ValueError, match=r"levels are those of ssd300_vgg16, 'resnet50' has none"):
        models.create("resnet50", attention="scsa", levels="shallow")


def test_names_are_listed() -> None:
    assert models.attentions() == ["cfsam", "interaction", "lga", "pcsa", "scsa", "smsa"]
    assert models.attentions("resnet50") == ["lga", "pcsa", "scsa", "smsa"]
    assert models.attentions("mobilenetv2_100") == ["pcsa", "scsa", "smsa"]
    assert models.attentions("mobilenetv3_large_100") == ["lga"]
    assert models.attentions("ssd300_vgg16") == ["cfsam"]
    assert models.attentions("swin_base_patch4_window7_224") == ["interaction"]
    some = {"resnet50", "mobilenetv2_100", "mobilenetv3_small_100", "ssd300_vgg16", "vit_tiny_patch16_224"}
    assert some < set(models.backbones())


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"needs timm: pip install 'fastattn\[models\]'"):
        models.create("resnet18", attention="scsa")


def test_maps_smaller_than_the_window_raise() -> None:
    model = models.create("resnet18", attention="scsa").eval()
    with torch.no_grad(), pytest.raises(ValueError, match="window"):
        model(torch.randn(1, 3, 64, 64))


# (name, where it stands, the last stage's channels, heads by default)
LGA = [
    ("mobilenetv3_small_100", "blocks.5.attention", 576, 12),
    ("mobilenetv3_large_100", "blocks.6.attention", 960, 12),
    ("resnet18", "layer4.attention", 512, 8),
    ("resnet34", "layer4.attention", 512, 8),
    ("resnet50", "layer4.attention", 2048, 8),
]


@pytest.mark.parametrize(("name", "path", "width", "heads"), LGA, ids=[name for name, *_ in LGA])
def test_lga_stands_once_after_the_last_stage(name: str, path: str, width: int, heads: int) -> None:
    with torch.device("meta"):
        plain = models.create(name)
    model = models.create(name, attention="lga").eval()
    order = modules_in_order(model, torch.randn(1, 3, 64, 64))
    found = {key: part for key, part in model.named_modules() if isinstance(part, fastattn.LocalGlobalAttention)}
    assert list(found) == [path]
    attention = found[path]
    assert (attention.embed_dim, attention.num_heads) == (width, heads)
    assert (attention.height, attention.width) == (14, 14)
    last = list(model.get_submodule(path.removesuffix(".attention")).modules())
    at = order.index(attention)
    assert any(part is order[at - 1] for part in last)
    assert not any(part is later for later in order[at + 1 :] for part in last)
    assert any(part is order[at + 1] for part in model.global_pool.modules())
    added = parameters_in_millions(model) - parameters_in_millions(plain)
    assert round(added * 1e6) == 4 * width**2 + 12 * width**2 // heads + 454 * width + 6
    assert set(model.state_dict()) - set(plain.state_dict()) == {f"{path}.{key}" for key in attention.state_dict()}


def test_lgas_arguments_are_the_callers() -> None:
    options = {"num_heads": 4, "contraction": "released", "height": 7, "width": 7}
    with torch.device("meta"):
        model = models.create("resnet18", attention="lga", attention_kwargs=options)
    attention = model.layer4.attention
    assert {name: getattr(attention, name) for name in options} == options
    with pytest.raises(ValueError, match="embed_dim must be divisible by num_heads, got 512 and 7"):
        models.create("resnet18", attention="lga", attention_kwargs={"num_heads": 7})


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Four photographs of 224 x 224."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return photographs(4).to(DEVICE)


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_backends_agree_with_lga_on_photographs(
    name: str, memory_format: torch.memory_format, images: torch.Tensor
) -> None:
    model = with_scales(name, "lga").eval().to(memory_format=memory_format)
    assert_backends_agree(model, images.contiguous(memory_format=memory_format))


@pytest.mark.skipif(INTERPRETED, reason="a network's worth of interpreted kernels takes hours")
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_training_step_with_lga_is_the_references(name: str, images: torch.Tensor, fast: str) -> None:
    model, x = with_scales(name, "lga").train(), images[..., ::2, ::2]
    grad_out = torch.randn(len(x), 10)
    truth = run(copy.deepcopy(model).double(), x.double(), grad_out.double(), "reference")
    eager = [run(model, x.contiguous(memory_format=layout), grad_out, "reference") for layout in FORMATS]
    assert_accurate(run(model, x, grad_out, fast), truth, *eager)


VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
# (name, the width of each block, the arguments that make it shallow)
TRANSFORMERS = [
    pytest.param(VIT, [192] * 12, {"depth": 2}, id="vit"),
    pytest.param(SWIN, [96, 96, 192, 192, *[384] * 6, 768, 768], {"depths": (2, 1, 1, 1)}, id="swin"),
]


@pytest.mark.parametrize(
    ("options", "layers", "concepts"),
    [({}, 2, 64), ({"num_layers": 1, "num_concepts": 16}, 1, 16)],
    ids=["by default", "one layer, 16 concepts"],
)
@pytest.mark.parametrize(("name", "widths", "shallow"), TRANSFORMERS)
def test_every_transformer_block_has_one_interaction(
    name: str, widths: list[int], shallow: dict, options: dict, layers: int, concepts: int
) -> None:
    with torch.device("meta"):
        plain = models.create(name)
        model = models.create(name, attention="interaction", attention_kwargs=options)
    found = {key: part for key, part in model.named_modules() if isinstance(part, fastattn.EnhancedInteraction)}
    assert [part.dim for part in found.values()] == widths
    assert all((part.num_layers, part.cat.num_concepts) == (layers, concepts) for part in found.values())
    added = parameters_in_millions(model) - parameters_in_millions(plain)
    # depthwise convolutions of 9 taps, three biases of C x C matrices: of the levels, of value and out; the scores
    expected = sum(layers * 10 * c + (layers + 3) * c**2 + 3 * c + concepts * c for c in widths)
    assert round(added * 1e6) == expected
    own = {f"{path}.{key}" for path, part in found.items() for key in part.state_dict()}
    assert set(model.state_dict()) - set(plain.state_dict()) == own
    assert set(plain.state_dict()) < set(model.state_dict())


@pytest.mark.parametrize(("name", "widths", "shallow"), TRANSFORMERS)
def test_interaction_stands_before_a_blocks_first_norm(name: str, widths: list[int], shallow: dict) -> None:
    model = models.create(name, attention="interaction", **shallow).eval()
    order = [part for part in modules_in_order(model, torch.randn(1, 3, 224, 224)) if not isinstance(part, nn.Identity)]
    blocks = [part for part in model.modules() if hasattr(part, "interaction")]
    assert len(blocks) == sum(shallow.get("depths", [shallow.get("depth", 0)]))
    for block in blocks:
        assert order[order.index(block.norm1) - 1] is block.interaction
        assert order.count(block.interaction) == 1


@pytest.mark.parametrize(("name", "widths", "shallow"), TRANSFORMERS)
def test_interaction_that_adds_nothing_leaves_the_plain_model(name: str, widths: list[int], shallow: dict) -> None:
    torch.manual_seed(0)
    model, plain = (models.create(name, attention=attention, **shallow) for attention in ("interaction", None))
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert (model.eval()(x) - plain.eval()(x)).norm() > 1e-3 * plain(x).norm()
        for part in model.modules():
            if isinstance(part, fastattn.EnhancedInteraction):
                for last in (part.acp.proj, part.cat.out):
                    last.weight.zero_()
                    last.bias.zero_()
        torch.testing.assert_close(model(x), plain(x))


class Seen(nn.Module):
    """Keeps what it is called with, and the number of prefix tokens that it was made for."""

    def __init__(self, dim: int, num_prefix_tokens: int):
        super().__init__()
        self.dim, self.prefix = dim, num_prefix_tokens

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        self.x, self.size = x, size
        return x + torch.arange(x.shape[1])[:, None]


@pytest.mark.parametrize(
    ("options", "prefix", "side", "size"),
    [
        ({}, 1, (224, 224), (14, 14)),
        ({"reg_tokens": 4}, 5, (224, 224), (14, 14)),
        ({"class_token": False, "global_pool": "avg"}, 0, (224, 224), (14, 14)),
        ({"img_size": (32, 64)}, 1, (32, 64), (2, 4)),
        ({"dynamic_img_size": True}, 1, (48, 32), (3, 2)),
    ],
    ids=["a class token", "registers", "none", "another size", "any size"],
)
def test_a_vits_interaction_has_its_tokens_and_grid(options: dict, prefix: int, side: tuple, size: tuple) -> None:
    model = models.create(VIT, attention=Seen, depth=2, **options).eval()
    if "dynamic_img_size" in options:  # what was seen before does not stay
        model(torch.randn(1, 3, 224, 224))
    first, second = model.blocks
    held = []
    first.norm1.register_forward_pre_hook(lambda module, args: held.append(*args))
    with torch.no_grad():
        model(torch.randn(1, 3, *side))
    for block in (first, second):
        assert (block.interaction.dim, block.interaction.prefix) == (192, prefix)
        assert tuple(block.interaction.size) == size
        assert block.interaction.x.shape == (1, prefix + size[0] * size[1], 192)
    given = (held[0] - first.interaction.x)[0, :, 0]
    torch.testing.assert_close(given, torch.arange(len(given)).float())


def test_a_swins_interaction_has_each_stages_map_in_rows() -> None:
    model = models.create(SWIN, attention=Seen, depths=(1, 1, 1, 1), img_size=(224, 448)).eval()
    blocks = [layer.blocks[0] for layer in model.layers]
    held = []
    blocks[0].norm1.register_forward_pre_hook(lambda module, args: held.append(*args))
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 448))
    found = [block.interaction for block in blocks]
    assert [tuple(part.size) for part in found] == [(56, 112), (28, 56), (14, 28), (7, 14)]
    assert [part.x.shape for part in found] == [(1, 56 * 112 // 4**i, 96 * 2**i) for i in range(4)]
    given = (held[0].flatten(1, 2) - found[0].x)[0, :, 0]
    torch.testing.assert_close(given, torch.arange(56 * 112).float(), rtol=0, atol=1e-2)
    assert {part.prefix for part in found} == {0}


@pytest.mark.parametrize(("name", "widths", "shallow"), TRANSFORMERS)
def test_backends_agree_with_interaction_on_a_photograph(
    name: str, widths: list[int], shallow: dict, images: torch.Tensor
) -> None:
    torch.manual_seed(0)
    model = models.create(name, attention="interaction", num_classes=10).eval()
    assert_backends_agree(model, images[:1])


@pytest.mark.skipif(INTERPRETED, reason="a network's worth of interpreted kernels takes hours")
@pytest.mark.parametrize(("name", "widths", "shallow"), TRANSFORMERS)
def test_training_step_with_interaction_is_the_references(
    name: str, widths: list[int], shallow: dict, images: torch.Tensor, fast: str
) -> None:
    torch.manual_seed(0)
    # one layer, and few pixels: where two maxima of a window differ by a rounding, a gradient takes either way
    options = {"num_layers": 1, "num_concepts": 16}
    model = models.create(
        name, attention="interaction", attention_kwargs=options, img_size=64, num_classes=10, **shallow
    ).train()
    x, grad_out = images[:1, :, 80:144, 80:144], torch.randn(1, 10)
    truth = run(copy.deepcopy(model).double(), x.double(), grad_out.double(), "reference")
    eager = [run(model, x.contiguous(memory_format=layout), grad_out, "reference") for layout in FORMATS]
    assert_accurate(run(model, x, grad_out, fast), truth, *eager)


def test_a_vit_with_interaction_compiles_whole() -> None:
    model = models.create(VIT, attention="interaction", depth=1).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(x)
        whole = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


@pytest.mark.parametrize(
    ("name", "attention", "known"),
    [
        ("resnet50", "interaction", "lga, pcsa, scsa, smsa"),
        ("ssd300_vgg16", "interaction", "cfsam"),
        (VIT, "scsa", "interaction"),
        (SWIN, "lga", "interaction"),
    ],
)
def test_interaction_is_for_transformers_alone(name: str, attention: str, known: str) -> None:
    with pytest.raises(ValueError, match=rf"no attention '{attention}' for '{name}', which takes {known}$"):
        models.create(name, attention=attention)


def test_interactions_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="num_concepts must be at least 1"):
        models.create(VIT, attention="interaction", attention_kwargs={"num_concepts": 0})
