"""fastattn.models: where the attention goes, what it adds, and that every backend agrees in a whole model."""

import copy
import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastattn
from fastattn.bench.photographs import photographs
from tests.helpers import DEVICE, FORMATS, INTERPRETED, assert_accurate, few, full, named, run

pytest.importorskip("timm")

from fastattn import models
from tests.models.helpers import (
    SWIN,
    VIT,
    assert_backends_agree,
    modules_in_order,
    parameters_in_millions,
    with_scales,
)

RIVALS = "ca, cbam, cpca, eca, ela, ema, fca, mhsa, sa, se"


# The paper's Table 2, in millions; for MobileNetV2 the paper prints 3.51 and 3.63.
@pytest.mark.parametrize(
    ("name", "without", "with_scsa"),
    [
        ("resnet50", 25.56, 25.62),
        ("resnet101", 44.55, 44.68),
        ("mobilenetv2_100", 3.50, 3.62),
        ("repvgg_a0", 9.11, 9.18),
        (SWIN, 28.29, 28.36),
    ],
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
        pytest.param("repvgg_a0", 22, {48, 96, 192, 1280}, id="RepVGG: the stem is a block too"),
        pytest.param("resnext50_32x4d", 16, {128, 256, 512, 1024}, id="ResNeXt: the grouped channels"),
        pytest.param(
            "mobilenetv3_small_100", 11, {16, 72, 88, 96, 240, 120, 144, 288, 576}, id="MobileNetV3: hidden channels"
        ),
        pytest.param("mobilevit_xxs", 7, {32, 48, 96, 128}, id="MobileViT: the inverted residuals"),
        pytest.param(SWIN, 12, {96, 192, 384, 768}, id="Swin: the output map's channels"),
        pytest.param(VIT, 12, {192}, id="ViT: the tokens' channels"),
    ],
)
@pytest.mark.parametrize("attention", [fastattn.SCSA, fastattn.SMSA, fastattn.PCSA])
def test_every_block_has_one_attention_of_its_width(
    attention: type[nn.Module], name: str, blocks: int, widths: set[int]
) -> None:
    with torch.device("meta"):
        plain = models.create(name)
        model = models.create(name, attention=attention.__name__.lower())
    found = [module for module in model.modules() if isinstance(module, attention)]
    assert len(found) == blocks
    assert {module.dim for module in found} == widths
    added = parameters_in_millions(model) - parameters_in_millions(plain)
    assert round(added * 1e6) == sum(parameter.numel() for module in found for parameter in module.parameters())
    assert set(plain.state_dict()) < set(model.state_dict())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        pytest.param("resnet50", "layer2.1.act2", "layer2.1.conv3", id="between the ReLU and the last 1x1"),
        pytest.param("resnet18", "layer2.1.act1", "layer2.1.conv2", id="before the second convolution"),
        pytest.param("mobilenetv2_100", "blocks.0.0.bn1", "blocks.0.0.conv_pw", id="first inverted residual"),
        pytest.param("mobilenetv2_100", "blocks.3.1.bn2", "blocks.3.1.conv_pwl", id="before the linear 1x1"),
        pytest.param("repvgg_a0", "stages.0.1.conv_kxk.conv", "stages.0.1.act", id="before the activation"),
        pytest.param(
            "mobilenetv3_small_100", "blocks.2.0.bn2", "blocks.2.0.se.conv_reduce", id="before the block's own SE"
        ),
        pytest.param("mobilevit_xxs", "stages.2.0.conv2_kxk.bn", "stages.2.0.conv3_1x1.conv", id="MobileViT"),
        pytest.param(SWIN, "layers.0.blocks.0.mlp.drop2", "layers.0.blocks.1.norm1", id="between two blocks"),
        pytest.param(VIT, "blocks.0.mlp.drop2", "blocks.1.norm1", id="between two of a ViT's blocks"),
    ],
)
def test_placement(name: str, before: str, after: str) -> None:
    model = models.create(name, attention="scsa").eval()
    parts = dict(model.named_modules())
    inner = {
        part for attention in model.modules() if isinstance(attention, fastattn.SCSA) for part in attention.children()
    }
    order = [
        part
        for part in modules_in_order(model, torch.randn(1, 3, 224, 224))
        if not isinstance(part, nn.Identity) and part not in inner  # which are called as they are hooked
    ]
    # In MobileNetV2 an activation is a part of a normalisation, which hooks report after it; RepVGG's have none.
    at = next(i for i, part in enumerate(order) if part is parts[after])
    assert isinstance(order[at - 1], fastattn.SCSA)
    assert order[at - 2] in (parts[before], getattr(parts[before], "act", None))


def test_swins_attention_sees_a_view_of_the_block() -> None:
    model = models.create(SWIN, attention="scsa", depths=(1, 1, 1, 1)).eval()
    held = {}
    block = model.layers[0].blocks[0]
    block.mlp.register_forward_hook(lambda module, args, out: held.update(rows=out.shape))
    block.attention.register_forward_hook(lambda module, args, out: held.update(x=args[0], out=out))
    block.register_forward_hook(lambda module, args, out: held.update(block=out))
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert held["x"].shape == (1, 96, 56, 56)
    assert held["x"].is_contiguous(memory_format=torch.channels_last)
    assert held["block"].shape == (1, 56, 56, 96)
    torch.testing.assert_close(held["block"].permute(0, 3, 1, 2), held["out"])
    torch.testing.assert_close(block.attention(held["x"]), held["out"])


def test_a_swin_with_attention_compiles_whole() -> None:
    model = models.create(SWIN, attention="scsa", depths=(1, 1, 1, 1)).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(x)
        whole = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(x), expected, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)


LARGE = pytest.mark.skipif(INTERPRETED, reason="a network's worth of interpreted kernels takes hours")


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv2_050", *(pytest.param(name, marks=LARGE) for name in ("repvgg_a0", SWIN, VIT))]
)
@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
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
        model = models.create("resnet18", attention="scsa", attention_kwargs={"head_num": 4, "qkv_bias": True})
    assert "layer1.0.aa.q.bias" in model.state_dict()


def test_attention_may_be_any_callable_of_the_channels() -> None:
    with torch.device("meta"):
        in_blocks = models.create("resnet18", attention=nn.BatchNorm2d)
        at_the_end = models.create("mobilenetv3_small_100", attention=nn.BatchNorm2d)
        after_blocks = [models.create(name, attention=nn.BatchNorm2d) for name in (SWIN, VIT)]
    assert in_blocks.layer4[0].aa.num_features == 512
    assert at_the_end.blocks[-1].attention.num_features == 576
    for model, widths in zip(after_blocks, ([96, 96, 192, 192, *[384] * 6, 768, 768], [192] * 12), strict=True):
        assert [part.num_features for part in model.modules() if isinstance(part, nn.BatchNorm2d)] == widths


class Seen(nn.Module):
    """Keeps the maps that it is called with and doubles them."""

    def __init__(self, channels: int, factor: float = 2):
        super().__init__()
        self.channels, self.factor = channels, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        return self.factor * x


def test_a_callable_stands_on_each_level_of_a_detector() -> None:
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = models.create("ssd300_vgg16", Seen, levels="shallow", attention_kwargs={"factor": 3}).eval()
        pyramid = list(model.backbone(torch.empty(1, 3, 300, 300)).values())
        handed: list[torch.Tensor] = []
        model.head.classification_head.register_forward_pre_hook(lambda head, args: handed.extend(args[0]))
        model.head(pyramid)
    found = model.head.neck.attention
    assert isinstance(found, models.PerLevel)
    assert [(part.channels, part.factor) for part in found] == [(512, 3), (1024, 3), (512, 3)]
    assert all(part.x is x for part, x in zip(found, pyramid, strict=False))
    assert [x is y for x, y in zip(handed, pyramid, strict=True)] == [False] * 3 + [True] * 3


def test_a_module_on_the_whole_pyramid_is_put_there_by_the_caller() -> None:
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = models.create("ssd300_vgg16")
        neck = models.OnLevels(models.PerLevel(map(Seen, (512, 256, 256, 256))), 2, 6)
        model.head.register_forward_pre_hook(lambda head, args: (neck(args[0]),))
        pyramid = list(model.backbone(torch.empty(1, 3, 300, 300)).values())
        assert model.head(pyramid)["cls_logits"].shape == (1, 8732, 91)
    assert all(part.x is x for part, x in zip(neck.attention, pyramid[2:], strict=True))


def test_the_parameters_are_the_documented_ones() -> None:
    with torch.device("meta"):
        model = models.create(backbone="resnet18", attention="scsa", backend="reference")
    assert model.layer1[0].aa.backend == "reference"
    assert list(inspect.signature(models.create).parameters)[:3] == ["backbone", "attention", "backend"]


def test_attention_follows_the_backbones_dtype() -> None:
    model = models.create("mobilenetv2_035", attention="scsa", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["resnet51", "no_such_model", "vgg16"])
def test_unknown_backbone_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown backbone '{name}'.*mobilenetv2_100.*resnet50"):
        models.create(name, attention="scsa")


# (name, attention, where it stands in the extractor, the options that leave no place for it)
EXTRACTORS = [
    ("resnet50", "scsa", "layer1.0.aa", {"out_indices": (0,)}),
    ("resnext50_32x4d", "se", "layer4.2.se", {"out_indices": (0,)}),
    ("resnet50", "lga", "layer4.attention", {"out_indices": (1, 2)}),
    ("mobilenetv3_small_100", "lga", "blocks.5.attention", {"out_indices": (1, 2)}),
    ("mobilenetv3_small_100", "scsa", "blocks.4.0.aa", {"feature_cls": "fx"}),
    ("mobilenetv2_100", "scsa", "blocks.6.0.se", {"feature_cls": "fx"}),
    ("repvgg_a0", "scsa", "stages_0.0.attn", {"feature_cls": "fx"}),
    ("mobilevit_xxs", "scsa", "stages_1.0.attn", {"feature_cls": "fx"}),
    (SWIN, "interaction", "layers_3.blocks.0.interaction", {"feature_cls": "fx"}),
    (VIT, "interaction", "model.blocks.11.interaction", {"feature_cls": "fx"}),
    (VIT, "scsa", "model.blocks.11.attention", {"feature_cls": "fx"}),
]


@pytest.mark.parametrize(
    ("name", "attention", "path", "nowhere"),
    [pytest.param(*case, marks=full(case[0] not in ("resnet50", VIT))) for case in EXTRACTORS],
)
def test_feature_extractors_have_the_attention(name: str, attention: str, path: str, nowhere: dict) -> None:
    plain, model = (with_scales(name, chosen, features_only=True).eval() for chosen in (None, attention))
    assert any(key.startswith(f"{path}.") for key in set(model.state_dict()) - set(plain.state_dict()))
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, *plain.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        for with_it, without in zip(model(x)[-1:], plain(x)[-1:], strict=True):
            assert with_it.shape == without.shape
            assert (with_it - without).norm() > 1e-3 * without.norm()
    with pytest.raises(ValueError, match=f"no place for '{attention}' in '{name}' with these options: it stands "):
        models.create(name, attention, features_only=True, **nowhere)


def test_hooks_of_a_feature_extractor_see_a_vits_attention() -> None:
    one = {"depth": 1, "out_indices": (0,)}
    model = models.create(VIT, lambda channels: Seen(channels, 0), features_only=True, feature_cls="hook", **one)
    with torch.no_grad():
        (tokens,) = model(torch.randn(1, 3, 224, 224))
    assert not tokens[:, 1:].any()


@pytest.mark.parametrize("name", few(["resnet18", "fasterrcnn_resnet50_fpn"]))
def test_checkpoints_of_the_model_and_of_the_plain_one_load(name: str, tmp_path: Path) -> None:
    own, plain = (models.create(name, attention, num_classes=3) for attention in ("scsa", None))
    for model, path in ((own, tmp_path / "own.pth"), (plain, tmp_path / "plain.pth")):
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in model.state_dict().items()}}, path)
        loaded = models.create(name, "scsa", num_classes=3, checkpoint_path=path).state_dict()
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*\.q\.weight"'):
        models.create(name, "eca", num_classes=3, checkpoint_path=tmp_path / "own.pth")


def test_a_checkpoint_that_lacks_a_part_of_the_attention_is_refused(tmp_path: Path) -> None:
    state = models.create("resnet18", "scsa").state_dict()
    del state["layer1.0.aa.q.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(RuntimeError, match=r'Missing key.*"layer1\.0\.aa\.q\.weight"'):
        models.create("resnet18", "scsa", checkpoint_path=tmp_path / "part.pth")


def test_unknown_attention_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no attention 'selfish' for 'resnet18', which takes lga, pcsa, scsa, smsa, "):
        models.create("resnet18", attention="selfish")


def test_an_attention_on_pyramids_does_not_fit_a_classifier() -> None:
    with pytest.raises(ValueError, match=r"no attention 'cfsam' for 'resnet50', which takes lga, pcsa, scsa, smsa"):
        models.create("resnet50", attention="cfsam")
    with pytest.raises(ValueError, match=r"of a detector's pyramid: 'scsa' in 'resnet50' stands on none"):
        models.create("resnet50", attention="scsa", levels="shallow")


def test_names_are_listed() -> None:
    rivals = RIVALS.split(", ")
    assert models.attentions() == ["cfsam", "interaction", "lga", "pcsa", "scsa", "smsa", *rivals]
    for name in ("resnet18", "resnet50", "resnet101"):
        assert models.attentions(name) == ["lga", "pcsa", "scsa", "smsa", *rivals]
    assert models.attentions("mobilenetv2_100") == ["pcsa", "scsa", "smsa", *rivals]
    assert models.attentions("repvgg_a0") == ["pcsa", "scsa", "smsa", *rivals]
    assert models.attentions("mobilenetv3_large_100") == ["lga", "pcsa", "scsa", "smsa", *rivals]
    assert models.attentions("mobilevit_xxs") == ["pcsa", "scsa", "smsa", *rivals]
    assert models.attentions("resnext50_32x4d") == ["lga", "pcsa", "scsa", "smsa", *rivals]
    assert models.attentions("ssd300_vgg16") == ["cfsam", *rivals]
    for name in (SWIN, VIT, "deit_tiny_patch16_224"):
        assert models.attentions(name) == ["interaction", "pcsa", "scsa", "smsa", *rivals]
    some = {"resnet50", "mobilenetv2_100", "mobilenetv3_small_100", "ssd300_vgg16", "vit_tiny_patch16_224"}
    assert some | {"repvgg_a0", "repvgg_b1g4", "resnet14t", SWIN} < set(models.backbones())
    assert "repvgg_d2se" not in models.backbones()  # its blocks' slot is taken


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


@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_backends_agree_with_lga_on_photographs(
    name: str, memory_format: torch.memory_format, images: torch.Tensor
) -> None:
    model = with_scales(name, "lga").eval().to(memory_format=memory_format)
    assert_backends_agree(model, images.contiguous(memory_format=memory_format))


@pytest.mark.triton
@pytest.mark.skipif(INTERPRETED, reason="a network's worth of interpreted kernels takes hours")
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_training_step_with_lga_is_the_references(name: str, images: torch.Tensor, fast: str) -> None:
    model, x = with_scales(name, "lga").train(), images[..., ::2, ::2]
    grad_out = torch.randn(len(x), 10)
    truth = run(copy.deepcopy(model).double(), x.double(), grad_out.double(), "reference")
    eager = [run(model, x.contiguous(memory_format=layout), grad_out, "reference") for layout in FORMATS]
    assert_accurate(run(model, x, grad_out, fast), truth, *eager)
