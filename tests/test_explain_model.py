"""What a stage of a network looks at: fields that are known, the forms of stages' outputs, and the command."""

import json
import sys

import pytest
import torch
from torch import nn

from fastattn import models
from fastattn.explain_model import ExplainError, as_map, grad_cam, main, receptive_field, square_side, stage_of
from tests.helpers import draw

pytestmark = pytest.mark.cpu


def convolutions(kernel, count, stride=1):
    """A chain that adds up its windows, whose field is theirs."""
    layers = [nn.Conv2d(3 if i == 0 else 1, 1, kernel, stride, kernel // 2, bias=False) for i in range(count)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    return nn.Sequential(*layers)


def test_field_of_two_convolutions():
    """The size of the gradient is the number of ways from a pixel to the middle: (1, 2, 3, 2, 1) in each direction."""
    field = receptive_field(convolutions(3, 2), draw(2, 3, 15, 15), stage="1")
    ways = torch.zeros(15)
    ways[5:10] = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    torch.testing.assert_close(field, torch.outer(ways, ways) / 81)


def test_side_of_the_square_that_holds_a_share():
    field = receptive_field(convolutions(3, 2), draw(1, 3, 15, 15), stage="1")
    # of 81 the middle has 9, the 3 x 3 around it 49
    for share, side in ((0.1, 1), (0.11, 1), (0.12, 3), (0.6, 3), (0.61, 5), (1.0, 5)):
        assert square_side(field, share) == pytest.approx(side / 15), share


def test_the_square_is_around_the_field_and_not_around_the_image():
    field = torch.zeros(20, 30)
    field[2:5, 20:23] = 1 / 9
    assert square_side(field, 1.0) == pytest.approx(3 / 30)


def test_a_stage_that_nothing_reaches_is_said():
    model = convolutions(3, 1)
    nn.init.zeros_(model[0].weight)
    with pytest.raises(ExplainError, match="nothing of the image reaches the stage"):
        receptive_field(model, draw(1, 3, 9, 9), stage="0")


def test_outputs_become_maps():
    maps = draw(2, 8, 5, 6)
    assert as_map(maps, 8) is maps
    assert torch.equal(as_map(maps.permute(0, 2, 3, 1), 8), maps)
    square = draw(2, 8, 4, 4)
    tokens = torch.cat([draw(2, 1, 8), square.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(as_map(tokens, 8, prefix=1), square)
    for wrong in (tokens, torch.zeros(2, 8)):
        with pytest.raises(ExplainError, match="neither a map nor the tokens of a square grid"):
            as_map(wrong, 8)


@pytest.mark.parametrize(
    ("backbone", "stage", "side"),
    [
        ("resnet18", "layer4", 7),
        ("vit_tiny_patch16_224", "blocks.11", 14),
        ("swin_tiny_patch4_window7_224", "layers.3", 7),
    ],
)
def test_the_last_stage_of_timms_networks_is_a_map(backbone, stage, side):
    pytest.importorskip("timm")
    model = models.create(backbone, num_classes=2).eval()
    name, module, to_map = stage_of(model)
    assert name == stage
    seen = []
    module.register_forward_hook(lambda _, __, out: seen.append(to_map(out)))
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    assert seen[0].shape[2:] == (side, side)
    with pytest.raises(ExplainError, match=f"no stage 'nowhere'; there are .*{stage}"):
        stage_of(model, "nowhere")


def test_a_network_that_names_no_stages_wants_one():
    with pytest.raises(ExplainError, match="name one with --stage"):
        stage_of(convolutions(3, 1))


def test_the_command_writes_pictures_of_a_plain_network_and_one_with_attention(tmp_path, capsys):
    pytest.importorskip("pytorch_grad_cam")
    command = ["resnet18", "--attention", "scsa", "--count", "2", "--num-classes", "5", "-o", str(tmp_path)]
    for flag, attention in (("--plain-checkpoint", None), ("--checkpoint", "scsa")):
        torch.manual_seed(1)
        model = models.create("resnet18", attention, num_classes=5, zero_init_last=False)
        path = tmp_path / f"{attention}.pt"
        torch.save(model.state_dict(), path)
        command += [flag, str(path)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "random" not in printed.err
    for name in ("grad-cam.png", "receptive-field.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / name) in printed.out
    facts = json.loads((tmp_path / "receptive-field.json").read_text())
    assert facts["stage"] == "layer4"
    plain, attended = facts["sides"]["plain"], facts["sides"]["scsa"]
    assert 0 < plain["0.2"] < plain["0.5"] < plain["0.99"] <= 1
    assert attended != plain
    cam = grad_cam(model.eval(), torch.randn(2, 3, 224, 224))
    assert cam.shape == (2, 224, 224)
    assert cam.min() >= 0
    assert cam.max() <= 1


def test_what_is_missing_or_wrong_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    command = ["resnet18", "--attention", "scsa", "-o", str(tmp_path / "made")]
    assert main(command) == 1
    assert "pip install 'fastattn[explain]'" in capsys.readouterr().err
    assert main([*command, "--stage", "layer9"]) == 1
    assert "no stage 'layer9'; there are act1, layer1" in capsys.readouterr().err
    assert main([*command, "--count", "0"]) == 1
    assert "--count and --size must be positive" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
