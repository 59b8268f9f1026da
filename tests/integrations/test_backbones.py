"""segmentation-models-pytorch and transformers: an attention in a model, a training step, a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fastattn

pytestmark = pytest.mark.cpu


def unet() -> tuple[Any, str]:
    library = pytest.importorskip("segmentation_models_pytorch")
    return library.Unet("resnet18", encoder_weights=None, classes=2), "encoder.layer3.*"


def resnet() -> tuple[Any, str]:
    library = pytest.importorskip("transformers")
    config = library.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic", num_labels=2
    )
    return library.ResNetForImageClassification(config), "resnet.encoder.stages.1.layers.*"


@pytest.mark.parametrize("make", [unet, resnet])
def test_it_trains_and_its_checkpoint_loads(make: Any, tmp_path: Path) -> None:
    (model, where), x = make(), torch.rand(2, 3, 128, 128)
    state = model.state_dict()
    found = fastattn.insert(model, {where: "scsa"}, example=x[:1])
    assert len(found) == 2
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".fastattn." in key for key in missing)
    out = model.train()(x)
    out = out if isinstance(out, torch.Tensor) else out.logits
    out.square().mean().backward()
    assert all(parameter.grad is not None for each in found for parameter in each.module.parameters())
    torch.optim.SGD(fastattn.param_groups(model), lr=0.1).step()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    twin, _ = make()
    fastattn.insert(twin, {where: "scsa"}, example=x[:1])
    twin.load_state_dict(torch.load(tmp_path / "model.pt"))
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
