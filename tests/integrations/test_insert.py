"""fastattn.insert and remove: names, weights and copies of a model that gets an attention."""

import copy
import io
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import fastattn
from tests.helpers import draw

pytestmark = pytest.mark.cpu


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.down = nn.Conv2d(8, 16, 3, 4, padding=1)
        self.layer2 = nn.Sequential(Block(16), Block(16))
        self.unused = Block(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer2(self.down(self.layer1(self.stem(x))))


class Pyramid(nn.Module):
    def __init__(self, kind: type):
        super().__init__()
        self.stem, self.kind = nn.Conv2d(3, 8, 3, padding=1), kind
        self.levels = Levels(kind)

    def forward(self, x: torch.Tensor) -> Any:
        return self.levels(self.stem(x))


class Levels(nn.Module):
    def __init__(self, kind: type):
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(8, 16, 3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        maps = [x, self.conv(x)]
        return {"0": maps[0], "1": maps[1]} if self.kind is dict else self.kind(maps)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def image(size: int = 64) -> torch.Tensor:
    return draw(1, 3, size, size)


IMAGE = torch.zeros(1, 3, 64, 64)
EVERY_BLOCK = {"layer?.*": "scsa"}


def insert(model: nn.Module, where: Any = EVERY_BLOCK, attention: Any = None, **options: Any) -> list[str]:
    return [each.name for each in fastattn.insert(model, where, attention, example=IMAGE, **options)]


@pytest.mark.parametrize(
    ("where", "attention", "names"),
    [
        ({"layer1.*": "scsa"}, None, ["layer1.0", "layer1.1"]),
        ({"layer1.0": "scsa", "layer2.*": "smsa"}, None, ["layer1.0", "layer2.0", "layer2.1"]),
        ("layer2", "scsa", ["layer2"]),
        (nn.BatchNorm2d, "se", ["layer1.0.norm", "layer1.1.norm", "layer2.0.norm", "layer2.1.norm"]),
        (lambda name, module: "pcsa" if name == "down" else None, None, ["down"]),
        (lambda name, module: name == "stem", fastattn.SCSA, ["stem"]),
    ],
)
def test_where_it_goes_and_back(where: Any, attention: Any, names: list[str]) -> None:
    model, x = net(), image()
    if where is nn.BatchNorm2d:
        del model.unused
    expected, state, modules = model(x), model.state_dict(), dict(model.named_modules())
    assert insert(model, where, attention) == names
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.rpartition(".fastattn.")[0] for key in missing} == set(names)
    assert not torch.equal(model(x), expected)
    assert fastattn.remove(model) == names
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(x), expected)


def test_it_follows_the_block() -> None:
    model, x, seen = net(), image(), []
    model.layer2[1].register_forward_hook(lambda block, args, out: seen.append(out))
    (inserted,) = fastattn.insert(model, "layer2.1", "scsa", example=IMAGE, head_num=2)
    assert (inserted.attention, inserted.channels, inserted.module.head_num) == ("scsa", 16, 2)
    out = model(x)
    torch.testing.assert_close(out, inserted.module(seen[-1]))


def test_it_takes_dtype_and_mode_of_its_block() -> None:
    model = net().double()
    model.layer1[0].train()
    fastattn.insert(model, {"layer1.*": "scsa"}, example=IMAGE.double())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert [model.layer1[i].fastattn.training for i in range(2)] == [True, False]
    assert [module.training for module in (model, model.layer1[0], model.layer1[1])] == [False, True, False]


@pytest.mark.parametrize("where", [EVERY_BLOCK, {"layer2": "scsa"}], ids=["hook", "sequential"])
def test_copies_keep_it(where: Any) -> None:
    model, x, file = net(), image(), io.BytesIO()
    insert(model, where)
    expected = model(x)
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        for parameter in model.parameters():
            parameter.data.mul_(1)
        assert torch.equal(twin(x), expected)
        twin.layer2.register_forward_hook(lambda *_: None)  # whose id may not be that of the attention's
        assert torch.equal(twin(x), expected)
        assert fastattn.remove(twin)
        assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)


def test_a_block_whose_forward_is_replaced_keeps_it() -> None:
    model, x = net(), image()
    insert(model)
    expected = model(x)
    block = model.layer2[1]
    block.forward = lambda x: x + block.norm(block.conv(x)).relu()
    assert torch.equal(model(x), expected)


def test_compiled_exported_and_traced() -> None:
    model, x = net(), image()
    insert(model)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected, rtol=1e-5, atol=1e-5)


def test_it_trains() -> None:
    model = net().train()
    del model.unused
    insert(model)
    model(image()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_pyramid(kind: type) -> None:
    model, x = Pyramid(kind).eval(), draw(1, 3, 8, 8)
    plain = model(x)
    (inserted,) = fastattn.insert(model, "levels", "cfsam", example=x, dim=16, num_heads=2)
    assert inserted.channels == [8, 16]
    found = model(x)
    if kind is dict:
        assert [*found] == ["0", "1"]
        plain, found = [*plain.values()], [*found.values()]
    for ours, expected in zip(found, inserted.module([*plain]), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_first_of_a_tuple() -> None:
    model, x = Pyramid(tuple).eval(), draw(1, 3, 8, 8)
    plain = model(x)
    (inserted,) = fastattn.insert(model, "levels", "scsa", example=x)
    torch.testing.assert_close(model(x)[0], inserted.module(plain[0]))
    assert torch.equal(model(x)[1], plain[1])


@pytest.mark.parametrize(
    ("where", "attention", "message"),
    [
        ({"layer3.*": "scsa"}, None, "no module is called 'layer3.*'; there are"),
        ({"layer1.*": "scsa", "layer?.0": "smsa"}, None, r"both 'layer1.\*' and 'layer\?.0' are patterns of layer1.0"),
        (nn.LSTM, "scsa", "the model has no LSTM"),
        (nn.Module, "scsa", "inside of it, are Module: name one"),
        (lambda name, module: None, None, "chose no module"),
        ("unused", "scsa", "unused is not called"),
        ("layer1.0", "attention", "no attention 'attention'"),
        ("layer1.0", "interaction", "layer1.0 returns \\(1, 8, 32, 32\\), no tokens"),
        ("layer1.0", "cfsam", "no list of maps"),
        ("layer1.0", "lga", "lga for 8 channels, behind layer1.0: .*num_heads"),
        ("layer1.0", None, "say what goes where"),
    ],
)
def test_bad_input_changes_nothing(where: Any, attention: Any, message: str) -> None:
    model = net()
    insert(model, "stem", "se")
    modules, hooks = dict(model.named_modules()), [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        insert(model, where, attention)
    assert dict(model.named_modules()) == modules
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_a_map_below_the_window_is_told_and_an_input_that_does_not_fit() -> None:
    model = net()
    small = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"scsa behind layer2.0, which returns \(1, 16, 4, 4\): .*7"):
        fastattn.insert(model, EVERY_BLOCK, example=small)
    with pytest.raises(ValueError, match="give `example`"):
        fastattn.insert(model, EVERY_BLOCK, example=torch.zeros(1, 4, 32, 32))
    assert fastattn.remove(model) == []


def test_twice_in_one_place() -> None:
    model = net()
    insert(model)
    with pytest.raises(ValueError, match="has an attention already"):
        insert(model)
    assert len(fastattn.remove(model)) == 4


def test_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), fastattn.SCSA(8), fastattn.LocalGlobalAttention(8, 2))
    model[0].weight.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without, decayed = fastattn.param_groups(model, 0.1, no_weight_decay=["2.out_conv.weight"])
    assert (without["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    plain = {names[id(parameter)] for parameter in without["params"]}
    assert {"1.q.weight", "1.k.weight", "1.v.weight", "2.position_encoding", "2.out_conv.weight"} <= plain
    assert "1.local_dwc.weight" in {names[id(parameter)] for parameter in decayed["params"]}
    assert len(without["params"]) + len(decayed["params"]) == len(names) - 1
    torch.optim.AdamW([without, decayed])


def test_a_framework_that_is_too_old_is_no_obstacle(monkeypatch):
    old = ModuleType("ultralytics")
    old.__version__ = "8.0.1"
    monkeypatch.setitem(sys.modules, "ultralytics", old)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    assert [put.name for put in fastattn.insert(model, {"1": "scsa"})] == ["1"]
    assert fastattn.remove(model) == ["1"]
