"""mmengine's registry builds this package's modules by their names."""

import pytest
import torch

import fastattn

pytest.importorskip("mmengine")

from mmengine.registry import MODELS, Registry

from fastattn.integrations.openmmlab import register_all

pytestmark = pytest.mark.cpu


def test_a_config_builds_them() -> None:
    register_all()
    register_all()
    built = MODELS.build({"type": "SCSA", "dim": 16, "head_num": 2, "norm_cfg": {"type": "BN"}})
    assert isinstance(built, fastattn.SCSA)
    assert built(torch.rand(1, 16, 8, 8)).shape == (1, 16, 8, 8)
    lga = MODELS.build({"type": "LocalGlobalAttention", "embed_dim": 16, "num_heads": 4})
    assert isinstance(lga, fastattn.LocalGlobalAttention)


def test_a_taken_name_is_not_overwritten() -> None:
    registry = Registry("models of somebody else")
    registry.register_module(name="SCSA", module=torch.nn.Identity)
    with pytest.raises(KeyError, match="SCSA is already registered"):
        register_all(registry)
    register_all(registry, force=True)
    assert registry.get("SCSA") is fastattn.SCSA
