"""PT2E quantisation of a network leaves its attention in float, as one operator."""

import pytest
import torch

from fastattn import models
from fastattn.bench.photographs import photographs

pytestmark = [pytest.mark.cpu, pytest.mark.full, pytest.mark.filterwarnings("ignore")]


def test_int8_around_scsa_agrees_with_float_on_photographs(native):
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.set_num_threads(2)
    seen, crops = photographs(264).split((64, 200))  # fitted and calibrated on the ones, compared on the others
    model = fitted(seen).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (seen[:2],), dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(program, quantizer(x86))
    with torch.no_grad():
        for batch in seen.split(16):
            prepared(batch)
        quantized = convert_pt2e(prepared)
        operators = [str(node.target) for node in quantized.graph.nodes]
        assert operators.count("fastattn.scsa_forward.default") == 8
        assert sum("quantize_per_tensor" in name for name in operators) > 20
        pairs = [(model(batch).argmax(1), quantized(batch).argmax(1)) for batch in crops.split(20)]
    expected, found = (torch.cat(labels) for labels in zip(*pairs, strict=True))
    assert len(expected.unique()) == 8  # it tells the photographs apart
    assert (expected == found).float().mean() >= 0.95


def quantizer(x86):
    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def fitted(crops):
    """A ResNet-18 + SCSA that tells the eight photographs apart, after a few steps."""
    torch.manual_seed(0)
    model = models.create("resnet18", attention="scsa", num_classes=8)
    labels = torch.arange(len(crops)) % 8
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(6):
        for batch, wanted in zip(crops.split(32), labels.split(32), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
    return model
