"""A gate whose layers are no longer those that its description says runs through them."""

import copy

import pytest
import torch
from torch import nn

import fastattn
from fastattn import zoo
from tests.helpers import randomize

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("native")]

X = torch.randn(2, 32, 7, 9, generator=torch.Generator().manual_seed(0))


def set_bias(layer, size):
    layer.bias = nn.Parameter(torch.randn(size))


def gradients(module, out):
    trained = [t for t in (*module.parameters(), *module.buffers()) if t.requires_grad]
    return torch.autograd.grad(out.sum(), trained) if trained else ()


CHANGES = {
    "ELA's convolution has a bias": (lambda: zoo.ELA(32), lambda m: set_bias(m.conv, 32)),
    "ECA's convolution has a bias": (lambda: zoo.ECA(32), lambda m: set_bias(m.conv, 1)),
    "CBAM's convolution has a bias": (lambda: zoo.CBAM(32), lambda m: set_bias(m.spatial.conv.conv, 1)),
    "SE has no bias": (lambda: zoo.SEModule(32), lambda m: setattr(m.fc1, "bias", None)),
    "SE has another bottleneck": (
        lambda: zoo.SEModule(32),
        lambda m: vars(m)["_modules"].update(fc1=nn.Conv2d(32, 5, 1), fc2=nn.Conv2d(5, 32, 1)),
    ),
    "a normalisation has no weights": (
        lambda: zoo.CoordAtt(32), lambda m: setattr(m, "bn1", nn.BatchNorm2d(8, affine=False)),
    ),
    "the weights of the frequencies are trained": (
        lambda: zoo.FcaLayer(32, 7, 9), lambda m: m.dct_layer.weight.requires_grad_(),
    ),
    "another lambda": (lambda: zoo.SimAM(), lambda m: setattr(m, "e_lambda", 0.5)),
    "statistics are no longer tracked": (
        lambda: zoo.CoordAtt(32), lambda m: setattr(m.bn1, "track_running_stats", False),
    ),
    "batches are not counted": (lambda: zoo.CoordAtt(32), lambda m: setattr(m.bn1, "num_batches_tracked", None)),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_it_is_honoured(make, change, training):
    torch.manual_seed(0)
    module = randomize(make()).train(training)
    module(X)
    change(module)
    twin = copy.deepcopy(module)
    found, expected = module(X), twin._through_children(X)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()))
    for ours, theirs in zip(gradients(module, found), gradients(twin, expected), strict=True):
        torch.testing.assert_close(ours, theirs)
    module.backend = "native"
    with pytest.raises(RuntimeError, match="other settings"):
        module(X)


@pytest.mark.parametrize("make", [lambda: zoo.CBAM(32), lambda: zoo.CoordAtt(32)], ids=["CBAM", "coordinate attention"])
def test_an_empty_batch_leaves_the_statistics(make):
    module = make()
    twin = copy.deepcopy(module)
    assert module(X[:0]).shape == (0, 32, 7, 9)
    twin._through_children(X[:0])
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()))


def test_one_number_cannot_be_normalised():
    module, x = zoo.CBAM(32), X[:1, :, :1, :1]
    for call in (module, module._through_children):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            call(x)


def test_fx_traces_a_training_module_and_leaves_its_statistics():
    module = zoo.CoordAtt(32)
    twin = copy.deepcopy(module)
    traced = torch.fx.symbolic_trace(nn.Sequential(module))
    assert module.bn1.num_batches_tracked == 0
    torch.testing.assert_close(traced(X), twin(X))
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()))


def test_parameters_of_several_dtypes_are_refused():
    module = zoo.SEModule(32)
    module.fc1.weight.data = module.fc1.weight.data.double()
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        module(X)


class Swish(nn.Module):
    """Not timm's: it learns how steep it is."""

    def __init__(self, inplace=False):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * (self.beta * x).sigmoid()


def test_an_activation_of_a_known_name_is_not_taken_for_it():
    with pytest.raises(ValueError, match="unknown activation: Swish"):
        zoo.SEModule(32, act_layer=Swish)


class CbamModule(nn.Module):
    """Of another author, with other layers."""

    def __init__(self):
        super().__init__()
        self.ca, self.sa = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.sa(self.ca(x))


def test_accelerate_leaves_anothers_class_of_the_same_name():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), CbamModule())
    fastattn.accelerate(model)
    assert type(model[1]) is CbamModule
