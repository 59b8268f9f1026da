"""torchvision's detectors over a feature pyramid, and its RetinaNet over timm's transformers: where attentions stand,
that old checkpoints load, and a step of training."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import fastattn
from fastattn import models
from fastattn.models.builders import DETECTORS
from fastattn.models.fpn import AttentiveBottleneck
from tests.helpers import few, full
from tests.models.helpers import SWIN, VIT, parameters_in_millions

pytest.importorskip("timm")
detection = pytest.importorskip("torchvision.models.detection")

pytestmark = [pytest.mark.cpu, pytest.mark.xdist_group("detector")]

OVER_RESNET = [name for name in DETECTORS if name.endswith("resnet50_fpn")]
VITS, SWINS = f"retinanet_{VIT}", f"retinanet_{SWIN}"
SHALLOW = {VITS: {"depth": 1}, SWINS: {"depths": (1, 1, 1, 1)}}  # a backbone's arguments for a small one
RIVALS = ["ca", "cbam", "cpca", "eca", "ela", "ema", "fca", "mhsa", "sa", "se"]


def on_meta(name: str, attention=None, **options) -> nn.Module:
    if name in SHALLOW:
        options = {"backbone_kwargs": SHALLOW[name]} | options
    with torch.device("meta"):
        return models.create(name, attention, **options)


def own_keys(model: nn.Module, attention: type[nn.Module]) -> set[str]:
    """The names that attentions of a class add to a model's state dict."""
    found = [(path, part) for path, part in model.named_modules() if isinstance(part, attention)]
    return {f"{path}.{key}" for path, part in found for key in part.state_dict()}


KINDS = [
    ("scsa", fastattn.SCSA, {}),
    ("pcsa", fastattn.PCSA, {}),
    ("scsa", fastattn.SCSA, {"levels": slice(0, 2)}),
    ("cfsam", fastattn.CFSAM, {}),
]


@pytest.mark.parametrize(
    ("name", "attention", "kind", "options"),
    [
        pytest.param(name, *kind, marks=full(name != OVER_RESNET[0] and kind is not KINDS[0]))
        for name in OVER_RESNET
        for kind in KINDS
    ],
)
def test_checkpoints_of_torchvisions_detectors_load_but_for_the_attention(
    name: str, attention: str, kind: type[nn.Module], options: dict
) -> None:
    theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3).state_dict()
    model = on_meta(name, attention, num_classes=3, **options)
    missing, unexpected = model.load_state_dict(theirs, strict=False, assign=True)
    assert set(missing) == own_keys(model, kind) != set()
    assert not unexpected
    assert {key for key, tensor in model.state_dict().items() if tensor.is_meta} == set(missing)


@pytest.mark.parametrize("name", few(OVER_RESNET))
def test_without_attention_it_is_torchvisions_model(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None)
    assert repr(on_meta(name)) == repr(theirs)


# SCSA's paper, Table 3: Faster R-CNN 41.75 M without and 41.81 M with SCSA, 44.27 with SE; RetinaNet 37.97 and 38.03,
# where MMDetection's heads differ a little from torchvision's.
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_attentions_add_the_papers_parameters(name: str) -> None:
    plain = parameters_in_millions(on_meta(name))
    assert round(parameters_in_millions(on_meta(name, "scsa")) - plain, 2) == 0.06
    assert round(parameters_in_millions(on_meta(name, "se")) - plain, 2) == pytest.approx(2.52, abs=0.011)


@pytest.mark.parametrize(
    ("attention", "slot"),
    [
        pytest.param(attention, slot, marks=full(attention != "scsa"))
        for attention, slot in (("scsa", "aa"), ("se", "se"), ("fca", "se"), ("ca", "aa"))
    ],
)
def test_bottlenecks_compute_what_timms_do(attention: str, slot: str) -> None:
    torch.manual_seed(0)
    body = models.create("fasterrcnn_resnet50_fpn", attention).backbone.body.eval()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    timms = models.create("resnet50", attention, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    timms.load_state_dict({key.replace(".attention.", f".{slot}."): value for key, value in body.state_dict().items()})
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(list(body(x).values()), timms(x), rtol=1e-3, atol=1e-3)


class Double(nn.Module):
    """Keeps the map that it is called with and doubles it."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return 2 * x


def test_a_callable_stands_in_every_bottleneck_or_on_the_levels() -> None:
    in_blocks = on_meta("fcos_resnet50_fpn", Double)
    blocks = [part for part in in_blocks.modules() if isinstance(part, AttentiveBottleneck)]
    assert [block.attention.channels for block in blocks] == [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    on_levels = on_meta("fcos_resnet50_fpn", Double, levels="deep")
    assert [part.channels for part in on_levels.modules() if isinstance(part, Double)] == [256] * 3


@pytest.mark.parametrize("name", few([VITS, *OVER_RESNET, SWINS], 2))
@pytest.mark.parametrize(("levels", "inside"), [("all", range(5)), ("shallow", range(3)), (slice(1, 2), range(1, 2))])
def test_levels_behind_the_pyramid(name: str, levels: str | slice, inside: range) -> None:
    model = on_meta(name, Double, levels=levels).eval()
    images = torch.empty(1, 3, 128, 160, device="meta")
    maps = copy.deepcopy(model).backbone(images)  # a copy's neck is its own
    neck = model.backbone.neck
    given: list[Tensor] = []
    neck.register_forward_pre_hook(lambda module, args: given.extend(args[0]))
    assert [x.shape for x in model.backbone(images).values()] == [x.shape for x in maps.values()]
    assert len(maps) == 5
    assert [part.x is given[i] for part, i in zip(neck.attention, inside, strict=True)] == [True] * len(inside)


@pytest.mark.parametrize("name", [VITS, SWINS])
def test_strides_of_the_levels_are_those_over_a_resnet(name: str) -> None:
    for images in (torch.empty(1, 3, 256, 384, device="meta"), torch.empty(2, 3, 128, 128, device="meta")):
        maps = on_meta(name).backbone(images).values()
        height, width = images.shape[2:]
        assert [tuple(x.shape[1:]) for x in maps] == [(256, height // s, width // s) for s in (8, 16, 32, 64, 128)]


@pytest.mark.parametrize(("patch", "strides"), [(8, (8, 16, 32)), (14, (7, 14, 28)), (32, (8, 16, 32))])
def test_strides_of_a_vit_with_other_patches(patch: int, strides: tuple[int, ...]) -> None:
    name = {8: "vit_small_patch8_224", 14: "vit_large_patch14_224", 32: "vit_small_patch32_224"}[patch]
    model = on_meta(f"retinanet_{name}", backbone_kwargs={"depth": 1})
    side = 4 * strides[-1]
    assert model.transform.size_divisible == strides[-1]
    maps = list(model.backbone(torch.empty(1, 3, side, side, device="meta")).values())
    assert [x.shape[-1] for x in maps[:3]] == [side // stride for stride in strides]


@pytest.mark.parametrize("name", [VITS, SWINS])
def test_transformers_keep_their_names_and_normalisation(name: str) -> None:
    plain, model = on_meta(name), on_meta(name, "interaction")
    found = [part for part in model.modules() if isinstance(part, fastattn.EnhancedInteraction)]
    assert len(found) == len([part for part in model.modules() if hasattr(part, "interaction")]) > 0
    assert set(model.state_dict()) - set(plain.state_dict()) == own_keys(model, fastattn.EnhancedInteraction)
    assert set(plain.state_dict()) < set(model.state_dict())
    config = model.backbone.body.model.pretrained_cfg
    assert (model.transform.image_mean, model.transform.image_std) == (config["mean"], config["std"])


def test_names_are_listed() -> None:
    for name in OVER_RESNET:
        assert models.attentions(name) == ["cfsam", "pcsa", "scsa", "smsa", *RIVALS]
    for name in (VITS, SWINS):
        assert models.attentions(name) == ["cfsam", "interaction", "pcsa", "scsa", "smsa", *RIVALS]
    assert {*OVER_RESNET, VITS, SWINS, "ssd300_vgg16"} < set(models.backbones())
    assert models.placement_note("maskrcnn_resnet50_fpn", "scsa") == (
        "In every bottleneck of the backbone, after the ReLU behind the 3x3 convolution."
    )
    assert models.placement_note("maskrcnn_resnet50_fpn", "eca", levels="all").startswith(
        "One on the map of each level"
    )
    assert models.placement_note(VITS, "cfsam") == "Once, between the backbone's pyramid and the heads."


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no attention 'lga' for 'fcos_resnet50_fpn', which takes cfsam, pcsa, scsa"):
        on_meta("fcos_resnet50_fpn", "lga")
    with pytest.raises(ValueError, match=f"of a detector's pyramid: 'interaction' in '{VITS}' stands on none"):
        on_meta(VITS, "interaction", levels="deep")
    with pytest.raises(ValueError, match="at least one of 5"):
        on_meta("fcos_resnet50_fpn", "cfsam", levels=slice(5, None))
    with pytest.raises(ValueError, match="unknown backbone 'retinanet_resnet50'"):
        on_meta("retinanet_resnet50", "scsa")


def test_narrow_images_are_padded_for_scsas_window() -> None:
    image = [torch.rand(3, 32, 320)]
    options = {"min_size": 32, "max_size": 320, "num_classes": 3, "backbone_kwargs": {"depths": (1, 1, 1, 1)}}
    with torch.no_grad(), pytest.raises(ValueError, match="window"):
        models.create(SWINS, "scsa", **options).eval()(image)
    with torch.no_grad():
        models.create(SWINS, "scsa", size_divisible=224, **options).eval()(image)


STEPS = [
    (VITS, "interaction", 64, {}),
    ("fasterrcnn_resnet50_fpn", "scsa", 224, {}),
    ("maskrcnn_resnet50_fpn", "scsa", 224, {}),
    ("retinanet_resnet50_fpn", "scsa", 224, {}),
    ("fcos_resnet50_fpn", "scsa", 224, {}),
    ("fasterrcnn_resnet50_fpn", "cfsam", 96, {"levels": "deep"}),
    ("retinanet_resnet50_fpn", "se", 96, {}),
    ("fcos_resnet50_fpn", "eca", 96, {"levels": "shallow"}),
    (SWINS, "interaction", 96, {}),
    (SWINS, "scsa", 224, {}),
    (VITS, "cfsam", 96, {"attention_kwargs": {"dim": 64}}),
]


@pytest.mark.parametrize(
    ("name", "attention", "side", "options"),
    [pytest.param(*step, marks=full(step is not STEPS[0])) for step in STEPS],
)
def test_a_step_of_training_and_a_detection(name: str, attention: str, side: int, options: dict) -> None:
    torch.manual_seed(0)
    if name in SHALLOW:
        options = {"backbone_kwargs": SHALLOW[name]} | options
    model = models.create(name, attention, num_classes=3, min_size=side, max_size=side, **options).train()
    image, boxes = torch.rand(3, side, side), torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.95, 0.9]]) * side
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": torch.ones(2, side, side, dtype=torch.uint8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = sum(model([image], [target]).values())
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    own = {key: parameter for key, parameter in model.named_parameters() if re.search("attention|interaction", key)}
    assert own
    assert all(parameter.grad.isfinite().all() for parameter in own.values())
    still = {key for key, parameter in own.items() if not parameter.grad.any()}
    assert still <= {key for key in own if key.endswith(".k.bias")}  # whose gradient is zero in CFSAM
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["scores"].isfinite().all()
