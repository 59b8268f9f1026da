"""The rivals: each computes its paper's equations, stands where its count says, and fits every backbone."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm")

from fastattn import models, zoo
from fastattn.models.rivals import RIVALS
from fastattn.zoo.channel_gates import FREQUENCIES
from tests.helpers import few
from tests.models.helpers import SWIN, VIT, parameters_in_millions

pytestmark = pytest.mark.cpu

# Millions of parameters of a ResNet-50 with each: SCSA's Table 2. It prints 27.40 for CPCA, whose count is 27.395.
COUNTS = {
    "se": 28.07,
    "eca": 25.56,
    "cbam": 28.07,
    "fca": 28.07,
    "cpca": 27.39,
    "sa": 25.56,
    "ela": 25.59,
    "ca": 25.69,
    "ema": 25.57,
    "mhsa": 30.60,  # not in that table: 4 C^2 + 4 C in each block
}
EVERY = pytest.mark.parametrize("name", COUNTS)


@pytest.fixture
def float64():
    """What is made is float64, constants included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_the_table_is_whole() -> None:
    assert RIVALS.keys() == COUNTS.keys()


@EVERY
def test_resnet50_has_the_papers_count(name: str) -> None:
    with torch.device("meta"):
        assert round(parameters_in_millions(models.create("resnet50", name)), 2) == COUNTS[name]


def test_ssd300_with_se_on_all_levels_has_its_count() -> None:
    with torch.device("meta"):
        model = models.create("ssd300_vgg16", "se", num_classes=21)
        some = models.create("ssd300_vgg16", "se", levels="shallow", num_classes=21)
    assert round(parameters_in_millions(model), 2) == 26.51
    assert [part.fc1.in_channels for part in model.head.neck.attention] == [512, 1024, 512, 256, 256, 256]
    assert [part.fc1.in_channels for part in some.head.neck.attention] == [512, 1024, 512]


def test_at_scsas_place_se_would_be_far_smaller() -> None:
    with torch.device("meta"):
        model = models.create("resnet50", lambda channels: RIVALS["se"].make(channels))
    assert round(parameters_in_millions(model), 2) == 25.71


def shaken(make: Callable[..., nn.Module], channels: int, **options) -> nn.Module:
    """A module of which no parameter is zero or one, which would hide what it does."""
    torch.manual_seed(0)
    module = make(channels, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


KINDS = {"fca": zoo.FcaLayer, "sa": zoo.ShuffleAttention, "ela": zoo.ELA, "ema": zoo.EMA}


@EVERY
@pytest.mark.parametrize("channels", [64, 48, 144])
def test_the_shape_stays_and_gradients_reach_everything(name: str, channels: int) -> None:
    module = shaken(RIVALS[name].make, channels)
    x = torch.randn(2, channels, 9, 11, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *module.parameters()])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@EVERY
def test_it_compiles_whole(name: str) -> None:
    module = shaken(RIVALS[name].make, 32).eval()
    x = torch.randn(2, 32, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))


@EVERY
@pytest.mark.parametrize("backbone", few(["resnet18", VIT, "resnet14t", "mobilenetv2_050", "repvgg_a0", SWIN], 2))
def test_it_runs_in_every_backbone_in_its_dtype(backbone: str, name: str) -> None:
    shallow = {SWIN: {"img_size": 64, "depths": (1, 1, 1, 1)}, VIT: {"img_size": 64, "depth": 1}}
    options = shallow.get(backbone, {})
    model = models.create(backbone, name, dtype=torch.bfloat16, num_classes=10, **options).eval()
    tensors = (*model.parameters(), *(part for key, part in model.named_buffers() if key.endswith("dct_layer.weight")))
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)).shape == (1, 10)


def standing(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [path for path, part in model.named_modules() if isinstance(part, kind)]


@pytest.mark.parametrize(
    ("backbone", "first", "count"),
    [
        pytest.param("resnet50", "layer1.0.{}", 16, id="every bottleneck"),
        pytest.param("resnet18", "layer1.0.aa", 8, id="every basic block, where SCSA stands"),
        pytest.param("mobilenetv2_100", "blocks.0.0.se", 17, id="every inverted residual"),
        pytest.param("mobilenetv3_small_100", "blocks.5.attention", 1, id="once, where LGA stands"),
        pytest.param("repvgg_a0", "stem.attn", 22, id="every block"),
        pytest.param(SWIN, "layers.0.blocks.0.attention", 12, id="every block's output"),
        pytest.param(VIT, "blocks.0.attention", 12, id="every block's output, the grid alone"),
        pytest.param("ssd300_vgg16", "head.neck.attention.0", 6, id="every level"),
    ],
)
@pytest.mark.parametrize(("name", "slot"), [("fca", "se"), ("sa", "se"), ("ela", "aa"), ("ema", "aa")])
def test_where_it_stands(name: str, slot: str, backbone: str, first: str, count: int) -> None:
    with torch.device("meta"):
        model = models.create(backbone, name)
    found = standing(model, KINDS[name])
    assert len(found) == count
    assert found[0] == first.format(slot)


def test_at_a_bottlenecks_output_it_sees_the_expanded_channels_before_the_sum() -> None:
    model = models.create("resnet14t", "fca").eval()
    block, seen = model.layer2[0], {}
    block.bn3.register_forward_hook(lambda module, args, out: seen.update(before=out.clone()))
    block.se.register_forward_hook(lambda module, args, out: seen.update(x=args[0].clone(), out=out.clone()))
    block.downsample.register_forward_hook(lambda module, args, out: seen.update(shortcut=out.clone()))
    block.register_forward_hook(lambda module, args, out: seen.update(block=out.clone()))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert torch.equal(seen["x"], seen["before"])
    torch.testing.assert_close(seen["block"], (seen["out"] + seen["shortcut"]).relu())


def test_fcas_filters_have_the_sizes_of_a_resnets_maps() -> None:
    with torch.device("meta"):
        bottlenecks, basic = (models.create(backbone, "fca") for backbone in ("resnet50", "resnet18"))
        other = models.create("mobilenetv2_100", "fca")
    for model in (bottlenecks, basic):
        sides = [part.size[0] for part in model.modules() if isinstance(part, zoo.FcaLayer)]
        assert sorted(set(sides), reverse=True) == [56, 28, 14, 7]
    assert {part.size for part in other.modules() if isinstance(part, zoo.FcaLayer)} == {(7, 7)}


def test_attention_kwargs_reach_it() -> None:
    with torch.device("meta"):
        model = models.create("resnet50", "se", attention_kwargs={"rd_ratio": 1 / 4})
        pyramid = models.create("ssd300_vgg16", "ca", attention_kwargs={"reduction": 64})
    assert model.layer1[0].se.fc1.out_channels == 64
    assert pyramid.head.neck.attention[1].conv_h.in_channels == 16


@pytest.mark.parametrize(("name", "note"), [("se", "no biases"), ("cpca", "27.40"), ("scsa", "3x3 convolution.")])
def test_notes_say_where_it_stands(name: str, note: str) -> None:
    places = {"se": "At the output of every bottleneck, before the sum with the shortcut"}
    found = models.placement_note("resnet50", name)
    assert found.startswith(places.get(name, "In every bottleneck, after the ReLU behind the 3x3 convolution"))
    assert note in found


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_large_100", "repvgg_a0", SWIN, VIT, "ssd300_vgg16"])
def test_every_pair_has_a_note(backbone: str) -> None:
    for name in models.attentions(backbone):
        note = models.placement_note(backbone, name)
        assert note[0].isupper()
        assert note.endswith(".")
        assert (name in RIVALS) == (";" in note)
        assert ("a guess" in note) == (backbone in ("repvgg_a0", SWIN) and name != "interaction")
    with pytest.raises(ValueError, match=f"no attention 'selfish' for '{backbone}', which takes"):
        models.placement_note(backbone, "selfish")


@pytest.mark.parametrize(
    ("name", "channels", "options", "message"),
    [
        ("sa", 33, {}, "channels must be even, got 33"),
        ("fca", 24, {}, "divisible by the 16 frequencies"),
        ("fca", 32, {"sides": {32: 5}}, "at least 7, got 5"),
        ("cpca", 8, {}, "at least reduction, got 8 and 16"),
        ("mhsa", 6, {}, "channels must be divisible by num_heads, got 6 and 4"),
    ],
)
def test_channels_that_do_not_fit(name: str, channels: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RIVALS[name].make(channels, **options)


@EVERY
def test_gradients_reach_it_in_a_vit(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(VIT, partial(shaken, RIVALS[name].make), depth=2, img_size=64, num_classes=10)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for key, parameter in model.blocks[0].attention.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


# What the papers' equations say, computed from the parameters one by one, in float64.


def se_directly(m: nn.Module, x: Tensor) -> Tensor:
    z = torch.einsum("bchw->bc", x) / x[0, 0].numel()
    hidden = torch.einsum("rc,bc->br", m.fc1.weight[:, :, 0, 0], z).clamp(min=0)
    return x * torch.einsum("cr,br->bc", m.fc2.weight[:, :, 0, 0], hidden).sigmoid()[:, :, None, None]


def eca_directly(m: nn.Module, x: Tensor) -> Tensor:
    taps = m.conv.weight[0, 0]
    reach, channels = len(taps) // 2, x.shape[1]
    logits = torch.zeros(x.shape[:2])
    for c in range(channels):
        for tap, weight in enumerate(taps):
            if 0 <= c + tap - reach < channels:
                logits[:, c] += weight * x[:, c + tap - reach].mean(dim=(1, 2))
    return x * logits.sigmoid()[:, :, None, None]


def cbam_directly(m: nn.Module, x: Tensor) -> Tensor:
    def bottleneck(z: Tensor) -> Tensor:
        hidden = torch.einsum("rc,bc->br", m.channel.fc1.weight[:, :, 0, 0], z).clamp(min=0)
        return torch.einsum("cr,br->bc", m.channel.fc2.weight[:, :, 0, 0], hidden)

    flat = x.flatten(2)
    x = x * (bottleneck(flat.mean(2)) + bottleneck(flat.max(2).values)).sigmoid()[:, :, None, None]
    both = torch.stack((x.mean(1), x.max(1).values), dim=1)
    logits = convolve(both, m.spatial.conv.conv.weight)
    norm = m.spatial.conv.bn
    mean, var = logits.mean(), logits.var(correction=0)
    return x * ((logits - mean) / (var + norm.eps) ** 0.5 * norm.weight + norm.bias).sigmoid()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, depthwise: bool = False) -> Tensor:
    """A convolution with zero padding that keeps the size, tap by tap."""
    height, width = weight.shape[2:]
    up, left = height // 2, width // 2
    padded = torch.zeros(*x.shape[:2], x.shape[2] + 2 * up, x.shape[3] + 2 * left)
    padded[:, :, up : up + x.shape[2], left : left + x.shape[3]] = x
    out = torch.zeros(x.shape[0], weight.shape[0], *x.shape[2:])
    for i in range(height):
        for j in range(width):
            piece = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            taps = weight[:, :, i, j]
            out += piece * taps[:, 0, None, None] if depthwise else torch.einsum("oc,bchw->bohw", taps, piece)
    return out if bias is None else out + bias[:, None, None]


def ca_directly(m: nn.Module, x: Tensor) -> Tensor:
    conv, norm = m.conv1, m.bn1
    strips = torch.cat((x.sum(3) / x.shape[3], x.sum(2) / x.shape[2]), dim=2)
    f = torch.einsum("rc,bcl->brl", conv.weight[:, :, 0, 0], strips) + conv.bias[:, None]
    mean, var = f.mean(dim=(0, 2), keepdim=True), f.var(dim=(0, 2), correction=0, keepdim=True)
    f = (f - mean) / (var + norm.eps) ** 0.5 * norm.weight[:, None] + norm.bias[:, None]
    f = f * (f + 3).clamp(0, 6) / 6
    h, w = f[:, :, : x.shape[2]], f[:, :, x.shape[2] :]
    g_h = (torch.einsum("cr,brl->bcl", m.conv_h.weight[:, :, 0, 0], h) + m.conv_h.bias[:, None]).sigmoid()
    g_w = (torch.einsum("cr,brl->bcl", m.conv_w.weight[:, :, 0, 0], w) + m.conv_w.bias[:, None]).sigmoid()
    return torch.einsum("bchw,bch,bcw->bchw", x, g_h, g_w)


def normalize(x: Tensor, groups: int, norm: nn.Module) -> Tensor:
    """Group normalisation of (B, C, ...)."""
    parts = x.reshape(x.shape[0], groups, -1)
    mean, var = parts.mean(2, keepdim=True), parts.var(2, correction=0, keepdim=True)
    shape = (-1, *[1] * (x.dim() - 2))
    return ((parts - mean) / (var + norm.eps) ** 0.5).reshape(x.shape) * norm.weight.view(shape) + norm.bias.view(shape)


def ela_directly(m: nn.Module, x: Tensor) -> Tensor:
    def gate(mean: Tensor) -> Tensor:
        out = convolve(mean[:, :, None], m.conv.weight[:, :, None], depthwise=True)[:, :, 0]
        return normalize(out, 16, m.gn).sigmoid()

    return torch.einsum("bchw,bch,bcw->bchw", x, gate(x.mean(3)), gate(x.mean(2)))


def ema_directly(m: nn.Module, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    width = x.shape[1] // 32
    mix = m.conv1x1.weight[:, :, 0, 0]
    for group in range(32):
        part = x[:, group * width : (group + 1) * width]
        rows = (torch.einsum("oc,bch->boh", mix, part.mean(3)) + m.conv1x1.bias[:, None]).sigmoid()
        columns = (torch.einsum("oc,bcw->bow", mix, part.mean(2)) + m.conv1x1.bias[:, None]).sigmoid()
        wide = normalize(torch.einsum("bchw,bch,bcw->bchw", part, rows, columns), width, m.gn)
        near = convolve(part, m.conv3x3.weight, m.conv3x3.bias)
        logits = torch.einsum("bc,bchw->bhw", wide.mean(dim=(2, 3)).softmax(1), near)
        logits += torch.einsum("bc,bchw->bhw", near.mean(dim=(2, 3)).softmax(1), wide)
        out[:, group * width : (group + 1) * width] = part * logits.sigmoid()[:, None]
    return out


def sa_directly(m: nn.Module, x: Tensor) -> Tensor:
    channels, groups = x.shape[1], 64
    width, half = channels // groups, channels // groups // 2
    gated = torch.empty_like(x)
    for group in range(groups):
        for i in range(half):
            one, other = group * width + i, group * width + half + i
            mean = x[:, one].mean(dim=(1, 2), keepdim=True)
            gated[:, one] = x[:, one] * (m.cweight[0, i] * mean + m.cbias[0, i]).sigmoid()
            part = x[:, other]
            mean = part.mean(dim=(1, 2), keepdim=True)
            var = part.var(dim=(1, 2), correction=0, keepdim=True)
            normal = (part - mean) / (var + m.gn.eps) ** 0.5 * m.gn.weight[i] + m.gn.bias[i]
            gated[:, other] = part * (m.sweight[0, i] * normal + m.sbias[0, i]).sigmoid()
    order = [half_ * channels // 2 + i for i in range(channels // 2) for half_ in range(2)]
    return gated[:, order]


def fca_directly(m: nn.Module, x: Tensor) -> Tensor:
    side, share = x.shape[2], x.shape[1] // 16
    components = torch.zeros(x.shape[:2])
    for c in range(x.shape[1]):
        u, v = (frequency * (side // 7) for frequency in FREQUENCIES[c // share])
        scale = (2 if u else 1) ** 0.5 * (2 if v else 1) ** 0.5 / side
        for h in range(side):
            for w in range(side):
                cosines = math.cos(math.pi * u * (h + 0.5) / side) * math.cos(math.pi * v * (w + 0.5) / side)
                components[:, c] += scale * cosines * x[:, c, h, w]
    hidden = torch.einsum("rc,bc->br", m.fc[0].weight, components).clamp(min=0)
    return x * torch.einsum("cr,br->bc", m.fc[2].weight, hidden).sigmoid()[:, :, None, None]


def cpca_directly(m: nn.Module, x: Tensor) -> Tensor:
    def mix(x: Tensor) -> Tensor:
        return convolve(x, m.conv.weight, m.conv.bias)

    def gate(z: Tensor) -> Tensor:
        first, last = m.ca.fc1, m.ca.fc2
        hidden = (torch.einsum("rc,bc->br", first.weight[:, :, 0, 0], z) + first.bias).clamp(min=0)
        return (torch.einsum("cr,br->bc", last.weight[:, :, 0, 0], hidden) + last.bias).sigmoid()

    x = mix(x)
    x = x * (1 + torch.erf(x / 2**0.5)) / 2
    x = x * (gate(x.mean(dim=(2, 3))) + gate(x.flatten(2).max(2).values))[:, :, None, None]
    near = convolve(x, m.dconv5_5.weight, m.dconv5_5.bias, depthwise=True)
    total = near
    for size in (7, 11, 21):
        across, down = (m.get_submodule(name) for name in (f"dconv1_{size}", f"dconv{size}_1"))
        strip = convolve(near, across.weight, across.bias, depthwise=True)
        total = total + convolve(strip, down.weight, down.bias, depthwise=True)
    return mix(mix(total) * x)


def mhsa_directly(m: nn.Module, x: Tensor) -> Tensor:
    theirs = nn.MultiheadAttention(x.shape[1], 4, batch_first=True)
    state = {"in_proj_weight": m.qkv.weight, "in_proj_bias": m.qkv.bias}
    theirs.load_state_dict(state | {f"out_proj.{key}": tensor for key, tensor in m.proj.state_dict().items()})
    tokens = torch.einsum("bchw->bhwc", x).flatten(1, 2)
    out, _ = theirs(tokens, tokens, tokens)
    return out.mT.reshape(x.shape)


# (computed directly, channels, the options that keep it small, the map)
DIRECTLY = {
    "se": (se_directly, 32, {}, (5, 4)),
    "eca": (eca_directly, 64, {}, (5, 4)),
    "cbam": (cbam_directly, 32, {}, (5, 4)),
    "ca": (ca_directly, 32, {}, (5, 4)),
    "ela": (ela_directly, 32, {}, (5, 9)),
    "ema": (ema_directly, 96, {}, (5, 4)),
    "sa": (sa_directly, 256, {}, (5, 4)),
    "fca": (fca_directly, 32, {"sides": {32: 14}}, (14, 14)),
    "cpca": (cpca_directly, 32, {}, (6, 5)),
    "mhsa": (mhsa_directly, 32, {}, (5, 4)),
}


@EVERY
def test_it_computes_its_papers_equations(name: str, float64: None) -> None:
    directly, channels, options, size = DIRECTLY[name]
    module = shaken(RIVALS[name].make, channels, **options)
    x = torch.randn(2, channels, *size)
    with torch.no_grad():
        torch.testing.assert_close(module(x), directly(module, x), rtol=1e-11, atol=1e-11)


def test_fca_pools_maps_of_another_size(float64: None) -> None:
    module = shaken(RIVALS["fca"].make, 16)
    x = torch.randn(1, 16, 14, 21)
    with torch.no_grad():
        tiles = x.unflatten(2, (7, 2)).unflatten(4, (7, 3)).mean(dim=(3, 5))
        gate = module(tiles) / tiles
        torch.testing.assert_close(module(x), x * gate[:, :, :1, :1])
