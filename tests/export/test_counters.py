"""FLOP counters and Grad-CAM on a model with a fastattn module."""

import pytest
import torch
from torch import nn

import fastattn
from fastattn import models
from fastattn.core.flops import multiply_adds
from fastattn.integrations import counters

pytestmark = [pytest.mark.cpu, pytest.mark.full, pytest.mark.filterwarnings("ignore")]

CASES = {
    "scsa": (fastattn.SCSA(16), (1, 16, 14, 14)),
    "lga": (fastattn.LocalGlobalAttention(16, 4), (1, 16, 14, 14)),
    "acp": (fastattn.AggressiveConvPooling(16), (1, 16, 14, 14)),
    "cat": (fastattn.ConceptualAttention(16, 5), (1, 20, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_thop_and_fvcore_count_multiply_adds(name):
    module, shape = CASES[name]
    model, x = nn.Sequential(module).eval(), torch.randn(shape)
    expected = multiply_adds(model, x)
    thop = pytest.importorskip("thop")
    assert thop.profile(model, (x,), custom_ops=counters.thop_ops(), verbose=False)[0] == expected
    fvcore = pytest.importorskip("fvcore.nn")
    assert fvcore.FlopCountAnalysis(model, x).set_op_handle(**counters.fvcore_handles()).total() == expected


@pytest.mark.parametrize("name", CASES)
def test_ptflops_counts_multiply_adds(name):
    module, (_, *shape) = CASES[name]
    model = nn.Sequential(module).eval()
    expected = multiply_adds(model, torch.randn(1, *shape))
    ptflops = pytest.importorskip("ptflops")
    options = {"as_strings": False, "print_per_layer_stat": False} | counters.ptflops_options()
    assert ptflops.get_model_complexity_info(model, (*shape,), **options)[0] == expected


def test_grad_cam_on_a_stage_and_on_a_child():
    cam = pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(0)
    model = models.create("resnet18", attention="scsa").eval()
    last = [module for module in model.modules() if isinstance(module, fastattn.SCSA)][-1]
    for layer in (model.layer4[-1], last.norm_h, last.q):
        fired = []
        handle = layer.register_forward_hook(lambda *_, fired=fired: fired.append(True))
        if layer is not last.norm_h:  # of vectors, which are no map
            found = cam.GradCAM(model=model, target_layers=[layer])(torch.randn(1, 3, 224, 224), targets=None)
            assert found.shape == (1, 224, 224)
        else:
            model(torch.randn(1, 3, 224, 224))
        assert fired
        handle.remove()
