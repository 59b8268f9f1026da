"""A module's own backend: it is followed whatever is asked for around it, and `models.create` fixes it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastattn
from tests.helpers import randomize

pytest.importorskip("timm")

from fastattn import models

pytestmark = pytest.mark.cpu

MAP = torch.randn(1, 8, 14, 14)
TOKENS = torch.randn(1, 16, 8)
CASES = {
    "SCSA": (lambda: fastattn.SCSA(8), (MAP,)),
    "SMSA": (lambda: fastattn.SMSA(8), (MAP,)),
    "PCSA": (lambda: fastattn.PCSA(8), (MAP,)),
    "LGA": (lambda: fastattn.LocalGlobalAttention(8, 2), (MAP,)),
    "ACP": (lambda: fastattn.AggressiveConvPooling(8), (MAP,)),
    "CAT": (lambda: fastattn.ConceptualAttention(8, 4), (TOKENS,)),
    "interaction": (lambda: fastattn.EnhancedInteraction(8), (TOKENS, (4, 4))),
    "CFSAM": (lambda: fastattn.CFSAM([8, 8], dim=16, num_heads=1), ([MAP, MAP],)),
}


@pytest.mark.parametrize(("make", "inputs"), CASES.values(), ids=CASES)
def test_a_modules_backend_is_followed_over_the_surrounding_one(make: Callable[[], nn.Module], inputs: tuple) -> None:
    module = randomize(make()).eval()
    with torch.no_grad(), fastattn.use_backend("reference"):
        expected = module(*inputs)
        module.backend = "triton"  # which serves no CPU
        with pytest.raises(RuntimeError, match="backend 'triton' cannot serve"):
            module(*inputs)
    module.backend = "reference"
    with torch.no_grad(), fastattn.use_backend("triton"):
        torch.testing.assert_close(copy.deepcopy(module)(*inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "attention", "made"),
    [
        ("resnet18", "scsa", 8),
        ("resnet18", "lga", 1),
        ("repvgg_a0", "smsa", 22),
        ("vit_tiny_patch16_224", "interaction", 3 * 12),  # with ACP and CAT
        ("vit_tiny_patch16_224", "scsa", 12),
        ("ssd300_vgg16", "cfsam", 1),
        ("ssd300_vgg16", fastattn.SCSA, 6),
        ("resnet18", lambda channels: nn.Sequential(fastattn.PCSA(channels), fastattn.SMSA(channels)), 16),
    ],
)
def test_create_fixes_the_backend_of_every_module(name: str, attention: str, made: int) -> None:
    with torch.device("meta"):
        model = models.create(name, attention, "native")
        free = models.create(name, attention)
    parts = [part for part in model.modules() if hasattr(part, "operation")]
    assert [part.backend for part in parts] == ["native"] * made
    assert {part.backend for part in free.modules() if hasattr(part, "operation")} == {None}
    assert model.state_dict().keys() == free.state_dict().keys()


def test_a_fixed_backend_is_explained() -> None:
    attention = models.create("resnet18", "scsa", backend="reference").layer1[0].aa
    assert "served by reference (asked for: reference)" in fastattn.explain(attention, torch.randn(1, 64, 14, 14))


def test_auto_is_fixed_too() -> None:
    model = models.create("resnet18", "scsa", "auto").eval()
    with torch.no_grad(), fastattn.use_backend("triton"):
        assert model(torch.randn(1, 3, 224, 224)).isfinite().all()


@pytest.mark.parametrize("attention", [None, lambda channels: nn.Hardsigmoid()], ids=["plain", "another's"])
def test_a_backend_means_nothing_to_others(attention: Callable[[int], nn.Module] | None) -> None:
    model = models.create("resnet18", attention, "triton").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_a_rival_of_the_zoo_says_that_it_has_no_kernel() -> None:
    model = models.create("resnet18", "se", "triton").eval()
    with pytest.raises(RuntimeError, match=r"'triton' cannot serve this gates call: .*there is no kernel yet"):
        model(torch.randn(1, 3, 64, 64))


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown backend 'fastest': expected one of auto, native, triton,"):
        models.create("resnet18", "scsa", "fastest")


def test_a_fixed_backend_compiles_whole() -> None:
    block = models.create("resnet18", "scsa", "reference").layer1[0].eval()
    x = torch.randn(1, 64, 14, 14)
    with torch.no_grad():
        expected = block(x)
        with fastattn.use_backend("triton"):
            whole = torch.compile(block, backend="eager", fullgraph=True)
            torch.testing.assert_close(whole(x), expected)
            block.aa.backend = "native"
            torch.testing.assert_close(whole(x), expected, rtol=1e-4, atol=1e-4)
            block.aa.backend = None
            with pytest.raises(RuntimeError, match="backend 'triton' cannot serve"):
                whole(x)
        exported = torch.export.export(block, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)
