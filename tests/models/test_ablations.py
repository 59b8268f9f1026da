"""SCSA's ablations: which are SCSA with other options, and what the eager ones compute."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastattn
from fastattn.models.ablations import SCSA_ABLATIONS, EagerSMSA, is_fast
from tests.helpers import FORMATS, check, draw, named, randomize

pytestmark = pytest.mark.cpu

EAGER = {
    "GN before the convolutions",
    "w/o normalisation in SMSA",
    "GN -> BN",
    "GN -> LN",
    "unshared convolutions",
}
EVERY = pytest.mark.parametrize("name", SCSA_ABLATIONS)
C = 16


def made(name: str, seed: int = 0) -> nn.Module:
    return randomize(SCSA_ABLATIONS[name](C), seed).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, C, 15, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_they_come_in_the_papers_order() -> None:
    assert list(SCSA_ABLATIONS) == [
        *("SCSA", "w/o SMSA", "w/o PCSA", "PCSA first", "GN before the convolutions", "w/o normalisation in SMSA"),
        *("GN -> BN", "GN -> LN", "w/o progressive compression", "multi-head with channel shuffle"),
        *("unshared convolutions", "scale sqrt(HW)", "G1(3)", "G1(7)", "G2(3, 7)"),
    ]


def test_which_are_fast() -> None:
    assert {name for name in SCSA_ABLATIONS if not is_fast(name)} == EAGER


def test_what_was_decided_is_said() -> None:
    plain = {"SCSA", "w/o SMSA", "w/o PCSA", "PCSA first"}  # whose names say all
    assert {name for name, ablation in SCSA_ABLATIONS.items() if not ablation.note} == plain
    for name in SCSA_ABLATIONS.keys() - plain:
        note = SCSA_ABLATIONS[name].note
        assert note[0].isupper() or note[0].isdigit()
        assert note.endswith(".")
    assert "one pixel" in SCSA_ABLATIONS["w/o progressive compression"].note
    assert "4 heads" in SCSA_ABLATIONS["multi-head with channel shuffle"].note


def test_options_reach_what_makes_it() -> None:
    assert SCSA_ABLATIONS["w/o SMSA"](C, head_num=4).head_num == 4


@EVERY
def test_a_fast_one_is_served_by_its_backend_alone(name: str) -> None:
    module = SCSA_ABLATIONS[name](C).eval()
    own = {key for part in module.modules() if hasattr(part, "operation") for key in map(id, part.parameters())}
    assert ({id(parameter) for parameter in module.parameters()} == own) == is_fast(name)
    with torch.no_grad(), fastattn.use_backend("triton"), pytest.raises(RuntimeError, match="'triton' cannot serve"):
        module(torch.randn(1, C, 14, 14))


@EVERY
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
def test_backends_agree_and_gradients_reach_everything(
    name: str, memory_format: torch.memory_format, native: object
) -> None:
    found = check(randomize(SCSA_ABLATIONS[name](C)), draw(2, C, 15, 22, memory_format=memory_format), "native")
    assert all(tensor.any() for tensor in found.values())


@EVERY
def test_it_stands_in_a_model(name: str) -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = fastattn.models.create("resnet18", SCSA_ABLATIONS[name])
    assert type(model.layer1[0].aa) is type(SCSA_ABLATIONS[name](C))


@pytest.mark.parametrize("name", ["SCSA", "multi-head with channel shuffle", "scale sqrt(HW)", "GN -> BN"])
def test_it_compiles_whole(name: str) -> None:
    module = randomize(SCSA_ABLATIONS[name](C)).eval()
    x = torch.randn(1, C, 14, 14)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)


def scsa_of(spatial: nn.Module, channel: nn.Module) -> fastattn.SCSA:
    """SCSA with the parameters of an SMSA and a PCSA."""
    whole = fastattn.SCSA(C).double()
    whole.load_state_dict(spatial.state_dict() | channel.state_dict())
    return whole


def copy_from(eager: EagerSMSA, module: fastattn.SMSA) -> None:
    """Give an eager SMSA the parameters of ours."""
    theirs = (module.local_dwc, module.global_dwc_s, module.global_dwc_m, module.global_dwc_l)
    for i, conv in enumerate(theirs):
        eager.convs[i].load_state_dict(conv.state_dict())
        if not eager.shared:
            eager.convs_w[i].load_state_dict(conv.state_dict())
    for norm in ("norm_h", "norm_w"):
        if getattr(eager, norm).state_dict().keys() == module.norm_h.state_dict().keys():
            getattr(eager, norm).load_state_dict(getattr(module, norm).state_dict())


@pytest.mark.parametrize("shared", [True, False])
def test_the_eager_smsa_is_smsa_by_default(x: Tensor, shared: bool) -> None:
    module, eager = made("w/o PCSA"), EagerSMSA(C, shared=shared).double()
    copy_from(eager, module)
    torch.testing.assert_close(eager(x), module(x))


def test_smsa_and_pcsa_in_turn_are_scsa_and_pcsa_first_is_not(x: Tensor) -> None:
    turned = made("PCSA first")
    pcsa, smsa = turned
    torch.testing.assert_close(turned(x), smsa(pcsa(x)))
    torch.testing.assert_close(pcsa(smsa(x)), scsa_of(smsa, pcsa)(x))
    assert (turned(x) - pcsa(smsa(x))).norm() > 1e-3 * x.norm()


def test_without_compression_the_pool_is_global(x: Tensor) -> None:
    module = made("w/o progressive compression")
    assert module.window_size == -1
    assert module(x).shape == x.shape


def directly(module: EagerSMSA, x: Tensor, normalize, first: bool) -> Tensor:
    """SMSA channel by channel, with another normalisation."""

    def gate(mean: Tensor, convs: nn.ModuleList, norm: nn.Module) -> Tensor:
        mean = normalize(mean, norm) if first else mean
        length = mean.shape[2]
        logits = torch.empty_like(mean)
        for c in range(C):
            conv, i = convs[c // (C // 4)], c % (C // 4)
            taps = conv.weight[i, 0]
            padded = F.pad(mean[:, c], (len(taps) // 2, len(taps) // 2))
            logits[:, c] = conv.bias[i] + sum(tap * padded[:, t : t + length] for t, tap in enumerate(taps))
        return (logits if first else normalize(logits, norm)).sigmoid()

    a_h = gate(x.mean(3), module.convs, module.norm_h)
    a_w = gate(x.mean(2), module.convs_w if hasattr(module, "convs_w") else module.convs, module.norm_w)
    return torch.einsum("bchw,bch,bcw->bchw", x, a_h, a_w)


def standardized(dims: tuple[int, ...], groups: int = 1):
    """What normalises (B, C, L), its channels in groups, over dimensions of (B, groups, C / groups, L)."""

    def normalize(x: Tensor, norm: nn.Module) -> Tensor:
        parts = x.unflatten(1, (groups, -1))
        mean, var = parts.mean(dims, keepdim=True), parts.var(dims, correction=0, keepdim=True)
        return ((parts - mean) / (var + norm.eps).sqrt()).flatten(1, 2) * norm.weight[:, None] + norm.bias[:, None]

    return normalize


@pytest.mark.parametrize(
    ("name", "normalize"),
    [
        ("GN before the convolutions", standardized((2, 3), groups=4)),
        ("w/o normalisation in SMSA", lambda x, norm: x),
        ("GN -> BN", standardized((0, 3))),
        ("GN -> LN", standardized((1, 2, 3))),
        ("unshared convolutions", standardized((2, 3), groups=4)),
    ],
)
def test_the_eager_ones_compute_what_they_say(name: str, normalize, x: Tensor) -> None:
    eager, pcsa = made(name)
    expected = directly(eager, x, normalize, first=name.startswith("GN before"))
    torch.testing.assert_close(eager(x), expected)
    torch.testing.assert_close(nn.Sequential(eager, pcsa)(x), pcsa(expected))


def test_unshared_convolutions_have_their_own_parameters() -> None:
    shared, unshared = (sum(p.numel() for p in made(name).parameters()) for name in ("SCSA", "unshared convolutions"))
    assert unshared - shared == 7 * C


@pytest.mark.parametrize(("height", "width"), [(14, 14), (15, 22), (7, 7)])
def test_the_scale_is_that_of_the_pooled_pixels(height: int, width: int) -> None:
    module = made("scale sqrt(HW)")
    x = torch.randn(2, C, height, width, dtype=torch.float64)
    smsa, plain = fastattn.SMSA(C).double(), made("SCSA")
    smsa.load_state_dict({key: tensor for key, tensor in module.state_dict().items() if key in smsa.state_dict()})
    s = smsa(x)
    y = F.group_norm(F.avg_pool2d(s, 7), 1, module.norm.weight, module.norm.bias).flatten(2)
    q, k, v = (y * getattr(module, name).weight.view(C, 1) for name in "qkv")
    scores = torch.einsum("bin,bjn->bij", q, k) / (height // 7 * (width // 7)) ** 0.5
    gate = torch.einsum("bij,bjn->bin", scores.softmax(2), v).mean(2).sigmoid()
    torch.testing.assert_close(module(x), s * gate[:, :, None, None])
    plain.load_state_dict(module.state_dict())
    assert not torch.allclose(module(x), plain(x))


def test_with_as_many_pixels_as_channels_the_scale_is_scsas(x: Tensor) -> None:
    module, plain = randomize(SCSA_ABLATIONS["scale sqrt(HW)"](4)), randomize(fastattn.SCSA(4))
    x = torch.randn(2, 4, 14, 14)
    torch.testing.assert_close(module(x), plain(x))


def test_heads_have_channels_of_all_groups(x: Tensor) -> None:
    module = made("multi-head with channel shuffle")
    smsa, _, pcsa = module
    order = [group * C // 4 + i for i in range(C // 4) for group in range(4)]
    assert pcsa.head_num == 4
    torch.testing.assert_close(module(x), pcsa(smsa(x)[:, order]))


@pytest.mark.parametrize(
    ("name", "kernels", "groups"), [("G1(3)", (3,), 1), ("G1(7)", (7,), 1), ("G2(3, 7)", (3, 7), 2)]
)
def test_fewer_groups_are_wider_convolutions(name: str, kernels: tuple, groups: int, x: Tensor) -> None:
    module = made(name)
    four = (module.local_dwc, module.global_dwc_s, module.global_dwc_m, module.global_dwc_l)
    width, each = C // groups, 4 // groups

    def gate(mean: Tensor, norm: nn.GroupNorm) -> Tensor:
        parts = []
        for i, (part, kernel) in enumerate(zip(mean.chunk(groups, dim=1), kernels, strict=True)):
            wide = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width).double()
            wide.weight = nn.Parameter(torch.cat([conv.weight for conv in four[i * each : (i + 1) * each]]))
            wide.bias = nn.Parameter(torch.cat([conv.bias for conv in four[i * each : (i + 1) * each]]))
            parts.append(wide(part))
        return norm(torch.cat(parts, dim=1)).sigmoid()

    s = x * gate(x.mean(3), module.norm_h)[..., None] * gate(x.mean(2), module.norm_w)[..., None, :]
    pcsa = fastattn.PCSA(C).double()
    pcsa.load_state_dict({key: tensor for key, tensor in module.state_dict().items() if key in pcsa.state_dict()})
    torch.testing.assert_close(module(x), pcsa(s))


def test_channels_that_the_groups_do_not_divide() -> None:
    with pytest.raises(ValueError, match="divisible by the 4 channel groups, got 6"):
        EagerSMSA(6)


def test_a_copy_computes_the_same(x: Tensor) -> None:
    for name in ("scale sqrt(HW)", "GN -> BN"):
        module = made(name).eval()
        torch.testing.assert_close(copy.deepcopy(module)(x), module(x))
