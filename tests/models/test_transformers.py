"""fastattn.models: the interaction ACP + CAT in timm's vision transformers, and attentions on their maps."""

import copy

import pytest
import torch
from torch import nn

import fastattn
from fastattn.bench.photographs import photographs
from tests.helpers import DEVICE, FORMATS, INTERPRETED, assert_accurate, run

pytest.importorskip("timm")

from fastattn import models
from fastattn.models.create import OWN
from fastattn.models.rivals import RIVALS as KNOWN_RIVALS
from tests.models.helpers import SWIN, VIT, assert_backends_agree, modules_in_order, parameters_in_millions

RIVALS = ", ".join(sorted(KNOWN_RIVALS))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Four photographs of 224 x 224."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return photographs(4).to(DEVICE)


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


VITS = pytest.mark.parametrize(
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


@VITS
def test_a_vits_interaction_has_its_tokens_and_grid(
    options: dict, prefix: int, side: tuple, size: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OWN, "interaction", Seen)
    model = models.create(VIT, attention="interaction", depth=2, **options).eval()
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


class SeenMap(nn.Module):
    """Keeps the map that it is called with, and adds to each pixel its number."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        return x + torch.arange(x[0, 0].numel()).view(x.shape[2:])


@VITS
def test_a_vits_attention_has_the_grids_map_and_leaves_the_other_tokens(
    options: dict, prefix: int, side: tuple, size: tuple
) -> None:
    model = copy.deepcopy(models.create(VIT, SeenMap, depth=2, **options).eval())
    if "dynamic_img_size" in options:  # what was seen before does not stay
        model(torch.randn(1, 3, 224, 224))
    first, second = model.blocks
    held = {}
    first.register_forward_hook(lambda module, args, out: held.update(out=out), prepend=True)
    second.norm1.register_forward_pre_hook(lambda module, args: held.update(given=args[0]))
    with torch.no_grad():
        model(torch.randn(2, 3, *side))
        for block in (first, second):
            assert block.attention.channels == 192
            assert block.attention.x.shape == (2, 192, *size)
    assert first.attention.x.untyped_storage().data_ptr() == held["out"].untyped_storage().data_ptr()  # a view
    added = torch.cat((torch.zeros(prefix), torch.arange(size[0] * size[1])))
    torch.testing.assert_close(held["given"] - held["out"], added[:, None].expand(2, -1, 192), rtol=0, atol=1e-3)


def test_a_swins_callable_sees_each_stages_map() -> None:
    model = models.create(SWIN, SeenMap, depths=(1, 1, 1, 1), img_size=(224, 448)).eval()
    found = [layer.blocks[0].attention for layer in model.layers]
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 448))
    assert [part.x.shape for part in found] == [(1, 96 * 2**i, 56 // 2**i, 112 // 2**i) for i in range(4)]
    assert all(part.x.is_contiguous(memory_format=torch.channels_last) for part in found)


def test_a_swins_interaction_has_each_stages_map_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN, "interaction", Seen)
    model = models.create(SWIN, attention="interaction", depths=(1, 1, 1, 1), img_size=(224, 448)).eval()
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


@pytest.mark.triton
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


@pytest.mark.parametrize("attention", ["interaction", "scsa"])
def test_a_vit_with_an_attention_compiles_whole(attention: str) -> None:
    model = models.create(VIT, attention=attention, depth=1).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(x)
        whole = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


@pytest.mark.parametrize(
    ("name", "attention", "known"),
    [
        ("resnet50", "interaction", f"lga, pcsa, scsa, smsa, {RIVALS}"),
        ("ssd300_vgg16", "interaction", f"cfsam, {RIVALS}"),
        (VIT, "lga", f"interaction, pcsa, scsa, smsa, {RIVALS}"),
        (SWIN, "lga", f"interaction, pcsa, scsa, smsa, {RIVALS}"),
    ],
)
def test_interaction_is_for_transformers_alone(name: str, attention: str, known: str) -> None:
    with pytest.raises(ValueError, match=rf"no attention '{attention}' for '{name}', which takes {known}$"):
        models.create(name, attention=attention)


def test_interactions_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="num_concepts must be at least 1"):
        models.create(VIT, attention="interaction", attention_kwargs={"num_concepts": 0})
