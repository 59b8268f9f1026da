"""timm's factory of attentions, which knows ours once they are registered, and its reparameterization."""

from collections.abc import Iterator

import pytest
import torch

import fastattn
from fastattn import models
from fastattn.integrations import timm as ours

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.cpu


@pytest.fixture
def registered() -> Iterator[None]:
    ours.register()
    yield
    ours.unregister()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ours.MAKERS)
def test_create_attn_knows_ours(name: str) -> None:
    attention = timm.layers.create_attn(name.upper(), 32, device="cpu", dtype=torch.float64)
    assert type(attention) in vars(fastattn).values()
    assert {parameter.dtype for parameter in attention.parameters()} == {torch.float64}
    x = torch.randn(2, 32, 9, 7, dtype=torch.float64)
    assert attention(x).shape == x.shape


@pytest.mark.usefixtures("registered")
def test_create_attn_hands_options_on_and_keeps_timms_own() -> None:
    assert timm.layers.create_attn("scsa", 16, window_size=3).window_size == 3
    assert timm.layers.create_attn("lga", 24, num_heads=6).num_heads == 6
    assert isinstance(timm.layers.create_attn("se", 16), timm.layers.SEModule)
    assert timm.layers.create_attn(None, 16) is None
    with pytest.raises(AssertionError, match="Invalid attn module"):
        timm.layers.create_attn("selfish", 16)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet18", {"block_args": {"attn_layer": "scsa"}}, 8),
        ("gcresnext26ts", {"attn_layer": "scsa"}, 8),  # a model whose file imports get_attn by name
        ("ese_vovnet19b_dw", {"attn": "scsa"}, 4),
    ],
)
def test_timms_models_take_ours_by_name(name: str, options: dict, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    assert sum(isinstance(part, fastattn.SCSA) for part in model.modules()) == count


def test_registering_twice_is_registering_once() -> None:
    theirs = timm.layers.get_attn
    ours.register()
    ours.register()
    ours.unregister()
    ours.unregister()
    assert timm.layers.get_attn is timm.models.resnet.get_attn is theirs
    with pytest.raises(AssertionError, match="Invalid attn module"):
        timm.layers.create_attn("scsa", 16)


def test_a_reparameterized_model_trains_its_attention() -> None:
    model = models.create("repvgg_a0", "scsa", num_classes=3).eval()
    model.stages[0][0].attn.requires_grad_(False)
    fused = ours.reparameterize_model(model)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-4)
    assert len(list(fused.parameters())) < len(list(model.parameters()))
    frozen = {name for name, parameter in fused.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"stages.0.0.attn.{name}" for name in model.stages[0][0].attn.state_dict()}
