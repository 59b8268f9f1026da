"""fastattn.accelerate: what it finds, that nothing but the time changes, and that restore undoes it."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastattn
from fastattn.core.module import FastModule
from tests.helpers import draw, few, named
from tests.integrations import foreign

pytestmark = pytest.mark.cpu

C = 16
THEIRS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "SCSA": (lambda: foreign.SCSA(C), ["SCSA"]),
    "SCSA, heads, bias, window": (lambda: foreign.SCSA(C, 4, 3, (5, 9, 3, 1), True), ["SCSA"]),
    "SCSA, softmax": (lambda: foreign.SCSA(C, gate_layer="softmax"), ["SCSA"]),
    "SCSA, max pooling": (lambda: foreign.SCSA(C, down_sample_mode="max_pool"), ["SCSA"]),
    "SCSA, no compression": (lambda: foreign.SCSA(C, window_size=-1), ["SCSA"]),
    "SCSA, dropout": (lambda: foreign.SCSA(C, attn_drop_ratio=0.3), ["SCSA"]),
    "SMSA and PCSA, renamed": (lambda: foreign.BothParts(C), ["SMSA", "PCSA"]),
    "LGA, released": (lambda: foreign.LocalGlobalAttention(C, 4), ["LocalGlobalAttention"]),
    "LGA, as in its paper": (
        lambda: foreign.LocalGlobalAttention(C, 4, 7, 5, contraction="paper"),
        ["LocalGlobalAttention"],
    ),
}
EVERY = pytest.mark.parametrize("which", THEIRS)


class Net(nn.Module):
    """A convolution before somebody else's attention, and a copy of it after."""

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.blocks = nn.Sequential(make(), nn.ReLU(), make())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x))


def net(which: str = "SCSA") -> Net:
    """A model with random parameters where training starts from ones and zeros."""
    torch.manual_seed(0)
    model = Net(THEIRS[which][0])
    for i in (0, 2):
        for name, parameter in model.blocks[i].named_parameters():
            if parameter.dim() <= 1:
                nn.init.normal_(parameter, float("weight" in name), 0.2)
    return model


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return draw(2, 3, 16, 16, dtype=dtype)


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = model(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [*model.parameters()], allow_unused=True)]


def replaced(model: nn.Module) -> list[str]:
    return [str(finding.replacement) for finding in fastattn.accelerate(model) if finding.replacement]


@EVERY
def test_nothing_but_the_time_changes(which: str) -> None:
    model, x = net(which).eval(), image()
    keys, parameters = [*model.state_dict()], [*model.parameters()]
    expected = gradients(model, x)
    originals = [*model.blocks]
    assert replaced(model) == 2 * THEIRS[which][1]
    assert [*model.state_dict()] == keys
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    found = gradients(model, x)
    assert (found[0] - expected[0]).norm() <= 1e-6 * expected[0].norm()
    largest = max(theirs.norm() for theirs in expected[1:] if theirs is not None)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        if theirs is not None:  # released: queries and keys have no effect
            assert (ours - theirs).norm() <= 1e-5 * largest
    fastattn.restore(model)
    assert [*model.blocks] == originals
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(x), expected[0], rtol=0, atol=0)


@EVERY
def test_the_replacement_is_served_by_a_fast_path(which: str, native: object) -> None:
    model = net(which).eval()
    fastattn.accelerate(model)
    assert ("contraction='released'" in repr(model)) == (which == "LGA, released")
    with torch.no_grad(), fastattn.use_backend("native"):  # which refuses what it would not serve
        model(image())


@pytest.mark.parametrize("which", ["SCSA", "SMSA and PCSA, renamed", "LGA, released"])
@pytest.mark.parametrize("dtype", few([torch.float64, torch.bfloat16, torch.float16]), ids=named)
def test_dtypes_and_training_mode_stay(which: str, dtype: torch.dtype) -> None:
    model = net(which).to(dtype)
    model.blocks[0].eval()
    model.blocks[2].train()
    fastattn.accelerate(model)
    assert sum(isinstance(module, FastModule) for module in model.modules()) == 2 * len(THEIRS[which][1])
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert [block.training for block in model.blocks] == [False, True, True]
    model.eval()
    fastattn.restore(model)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("which", ["SCSA", "SMSA and PCSA, renamed", "LGA, released"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_is_a_model_of_its_own(which: str, way: str) -> None:
    model, x = net(which).eval(), image()
    fastattn.accelerate(model)
    expected = model(x)
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x), expected)
    assert len(fastattn.restore(twin)) == len(THEIRS[which][1]) * 2
    assert (twin(x) - expected).norm() <= 1e-6 * expected.norm()


def test_an_optimizer_that_was_there_trains_it() -> None:
    model, twin, x = net(), net(), image()
    steps = []
    for each in (model, twin):
        optimizer = torch.optim.SGD(each.parameters(), lr=1e-2, momentum=0.9)
        if each is model:
            fastattn.accelerate(each)
        for _ in range(3):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
        steps.append(each.state_dict())
    for name, tensor in steps[0].items():
        torch.testing.assert_close(tensor, steps[1][name], rtol=1e-4, atol=1e-5)


def test_hooks_of_the_module_and_of_its_children_fire() -> None:
    model, x, calls = net().eval(), image(), []
    expected = model(x)
    before = model.blocks[0].register_forward_hook(lambda *_: calls.append("before"))
    fastattn.accelerate(model)
    model.blocks[0].register_forward_hook(lambda *_: calls.append("after"))
    gate = model.blocks[0].ca_gate.register_forward_hook(lambda *_: calls.append("gate"))  # a layer that ours has not
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert calls == ["gate", "before", "after"]
    gate.remove()
    before.remove()
    fastattn.restore(model)
    model(x)
    assert calls[3:] == ["after"]


def test_a_child_that_is_replaced_later_has_its_effect() -> None:
    model, x = net().eval(), image()
    fastattn.accelerate(model)
    model.blocks[0].sa_gate = nn.Tanh()
    ours = model(x)
    fastattn.restore(model)
    torch.testing.assert_close(ours, model(x), rtol=1e-5, atol=1e-5)


def test_pruned_weights_are_formed_anew(native: object) -> None:
    model, x = net().eval(), image()
    fastattn.accelerate(model)
    torch.nn.utils.prune.l1_unstructured(model.blocks[0].q, "weight", amount=0.5)
    ours = model(x)
    fastattn.restore(model)
    torch.testing.assert_close(ours, model(x), rtol=1e-5, atol=1e-5)


def test_attributes_that_frameworks_read_stay() -> None:
    model = net()
    model.blocks[0].i, model.blocks[0].f, model.blocks[0].type = 7, -1, "SCSA"
    fastattn.accelerate(model)
    assert (model.blocks[0].i, model.blocks[0].f, model.blocks[0].type) == (7, -1, "SCSA")
    assert isinstance(model.blocks[0], fastattn.SCSA)


def test_a_module_in_two_places_stays_one() -> None:
    model = net()
    model.blocks[2] = model.blocks[0]
    assert replaced(model) == ["SCSA"]
    assert model.blocks[2] is model.blocks[0]
    assert isinstance(model.blocks[0], fastattn.SCSA)


def test_compiled_exported_and_traced() -> None:
    model, x = net().eval(), image()
    expected = model(x)
    fastattn.accelerate(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)


class OfMMEngine(foreign.SCSA):
    """The authors' base class adds state of its own and no parameter."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self._is_init = False
        self.init_cfg = None


def test_a_base_class_makes_no_difference() -> None:
    model = Net(lambda: OfMMEngine(C))
    assert replaced(model) == ["SCSA", "SCSA"]
    assert model.blocks[0].init_cfg is None


def test_names_of_ours_are_the_authors() -> None:
    ours = {name: tensor.shape for name, tensor in fastattn.SCSA(C, qkv_bias=True).state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in foreign.SCSA(C, qkv_bias=True).state_dict().items()}
    assert ours == theirs


# What is left as it is, and why.


class OtherNorm(foreign.SCSA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


class Detached(foreign.SCSA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.detach()) + (x - x.detach())


class DoublesWhileTraining(foreign.SCSA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2 if self.training else 1)


class WithOneMore(foreign.SCSA):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.gamma = nn.Parameter(torch.ones(1))


class GivesTwo(foreign.SCSA):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(x), x


class Raises(foreign.SCSA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (OtherNorm, "evaluating, it differs from SCSA"),
        (Detached, "evaluating, it differs from SCSA"),
        (DoublesWhileTraining, "training, it differs from SCSA"),
        (WithOneMore, "it has the layers of SCSA and others: gamma"),
        (GivesTwo, "it returns no map"),
        (Raises, "RuntimeError: not today"),
        (lambda dim: foreign.ChannelPart(dim, scale=2.0), "it differs from PCSA"),
    ],
)
def test_what_computes_something_else_is_left(make: Callable[[int], nn.Module], reason: str) -> None:
    model = nn.Sequential(make(C))
    before = dict(model.named_modules())
    (finding,) = fastattn.accelerate(model)
    assert finding.replacement is None
    assert reason in finding.reason
    assert dict(model.named_modules()) == before
    assert reason in str(finding)


def test_a_name_alone_is_not_enough() -> None:
    class SCSA(nn.Identity):
        pass

    report = fastattn.accelerate(nn.Sequential(SCSA(), foreign.SCSA(C)))
    assert [finding.replacement for finding in report] == [None, "SCSA"]
    assert str(report).splitlines() == [
        "0 (SCSA): left as it is: it has not the layers of its name",
        "1 (SCSA): replaced by fastattn.SCSA",
    ]


def test_a_patched_forward_is_left() -> None:
    model = net()
    model.blocks[0].forward = lambda x: x
    assert replaced(model) == ["SCSA"]
    assert "forward was replaced" in fastattn.accelerate(model)[0].reason


def test_the_model_itself_cannot_be_replaced() -> None:
    (finding,) = fastattn.accelerate(foreign.SCSA(C))
    assert "the model itself" in finding.reason


def test_ours_and_what_was_replaced_are_not_looked_at_again() -> None:
    model = nn.Sequential(fastattn.SCSA(C), foreign.SCSA(C), nn.Conv2d(C, C, 1))
    assert len(fastattn.accelerate(model)) == 1
    report = fastattn.accelerate(model)
    assert not report
    assert str(report) == "nothing found that fastattn has"
    assert fastattn.restore(model) == ["1"]
    assert fastattn.restore(model) == []


def test_the_random_state_of_the_caller_stays() -> None:
    model = net()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fastattn.accelerate(model)
    assert torch.equal(torch.rand(1), expected)


def timms(name: str, *arguments, **options) -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    where = {"CbamModule": layers.cbam, "SqueezeExcite": blocks}.get(name, layers)
    return getattr(where, name)(*arguments, **options)


GATES = {
    "SE": (lambda: timms("SEModule", C), "SEModule"),
    "SE, no bias": (lambda: timms("SEModule", C, 1 / 4, rd_divisor=1, bias=False), "SEModule"),
    "SE of an EfficientNet": (lambda: timms("SqueezeExcite", C, act_layer=nn.SiLU), "SEModule"),
    "effective SE": (lambda: timms("EffectiveSEModule", C), "EffectiveSEModule"),
    "ECA": (lambda: timms("EcaModule", C), "ECA"),
    "CBAM": (lambda: timms("CbamModule", C), "CBAM"),
}


@pytest.mark.parametrize("which", GATES)
def test_timms_gates_are_replaced_and_compute_the_same(which: str) -> None:
    make, replacement = GATES[which]
    torch.manual_seed(0)
    model = Net(make)
    names, twin = [*model.state_dict()], copy.deepcopy(model)
    found = fastattn.accelerate(model)
    assert [finding.replacement for finding in found] == [replacement] * 2
    assert [*model.state_dict()] == names
    for training in (False, True):
        outs = [part.train(training)(image()) for part in (model, twin)]
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()), rtol=1e-4, atol=1e-5)
    assert fastattn.restore(model) == ["blocks.0", "blocks.2"]
    assert type(model.blocks[0]) is type(twin.blocks[0])


def test_a_hook_inside_of_timms_cbam_is_called() -> None:
    model, seen = Net(GATES["CBAM"][0]), []
    fastattn.accelerate(model)
    model.blocks[0].channel.fc1.register_forward_hook(lambda *arguments: seen.append(1))
    model(image())
    assert seen


@pytest.mark.parametrize(
    "make",
    [
        lambda: timms("SEModule", C, add_maxpool=True),
        lambda: timms("SEModule", C, norm_layer=nn.BatchNorm2d),
        lambda: timms("EcaModule", C, use_mlp=True),
        lambda: timms("EcaModule", C, gate_layer="hard_sigmoid"),
        lambda: timms("SEModule", C, act_layer=nn.GELU),
    ],
)
def test_gates_of_timm_with_more_are_left(make: Callable[[], nn.Module]) -> None:
    (first, second) = fastattn.accelerate(Net(make))
    assert (first.replacement, second.replacement) == (None, None)
    assert first.reason == "it has not the layers of its name"
