"""torchvision's SSD300 with an attention between pyramid and head: places, names, and a whole detector at work."""

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

import fastattn
from fastattn import models
from fastattn.bench.photographs import originals
from fastattn.models.levels import span
from fastattn.models.ssd import place_in_ssd

detection = pytest.importorskip("torchvision.models.detection")

pytestmark = [pytest.mark.cpu, pytest.mark.xdist_group("detector")]

NECK = "head.neck.attention."  # what stands before an attention's own names
CHANNELS = (512, 1024, 512, 256, 256, 256)
SIZES = (38, 19, 10, 5, 3, 1)
POSITIONS = {
    "all": range(6),
    "shallow": range(3),
    "deep": range(3, 6),
    "one level": range(1, 2),
    "from the end": range(4, 6),
}
LEVELS = {"one level": slice(1, 2), "from the end": slice(-2, None)}


class Recorder(nn.Module):
    """An attention that notes its levels' channels and the maps' sizes and doubles the maps."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.channels = channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        self.sizes = [x.shape[-1] for x in maps]
        return [2 * x for x in maps]


def on_meta(attention=None, **options) -> nn.Module:
    with torch.device("meta"):
        return models.create("ssd300_vgg16", attention, num_classes=21, **options)


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    return models.create("ssd300_vgg16", "cfsam", num_classes=21).eval()


@pytest.fixture(scope="module")
def photographs() -> list[Tensor]:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return originals()[:2]


@pytest.fixture(scope="module")
def pyramid(detector: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        image = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))
        return list(detector.backbone(255 * image - 128).values())


# The paper's Table 4, in millions.
def test_parameter_counts_are_the_papers() -> None:
    def count(model: nn.Module, digits: int) -> float:
        return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, digits)

    assert count(on_meta(), 3) == 26.285
    assert count(on_meta("cfsam"), 2) == 45.16


def test_without_attention_it_is_torchvisions_model() -> None:
    with torch.device("meta"):
        theirs = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21)
    ours = on_meta()
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("position", POSITIONS)
def test_levels_between_pyramid_and_head(position: str) -> None:
    model = on_meta()
    place_in_ssd(model, Recorder, *span(LEVELS.get(position, position), 6))
    seen = []
    model.head.classification_head.register_forward_pre_hook(lambda head, args: seen.extend(args[0]))
    pyramid = list(model.backbone(torch.empty(1, 3, 300, 300, device="meta")).values())
    scores = model.head(pyramid)["cls_logits"]
    recorder = model.head.neck.attention
    assert tuple(scores.shape) == (1, 8732, 21)
    assert recorder.channels == [CHANNELS[i] for i in POSITIONS[position]]
    assert recorder.sizes == [SIZES[i] for i in POSITIONS[position]]
    assert [x is not y for x, y in zip(pyramid, seen, strict=True)] == [i in POSITIONS[position] for i in range(6)]


def test_on_levels_serves_a_slice_of_any_pyramid() -> None:
    maps = [torch.full((1, 1, 2, 2), float(i)) for i in range(4)]
    out = models.OnLevels(Recorder([1, 1]), 1, 3)(maps)
    assert [x.max().item() for x in out] == [0, 2, 4, 3]
    with pytest.raises(ValueError, match="levels 1 to 2 need 3 maps, got 2"):
        models.OnLevels(Recorder([1, 1]), 1, 3)(maps[:2])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 1)])
def test_on_levels_takes_no_empty_span(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="start < stop"):
        models.OnLevels(nn.Identity(), start, stop)


def test_one_attention_per_level() -> None:
    model = on_meta(fastattn.SCSA, levels="shallow")
    assert [attention.norm.num_channels for attention in model.head.neck.attention] == [512, 1024, 512]
    maps = [torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)]
    each = models.PerLevel([nn.AvgPool2d(2), nn.MaxPool2d(2)])
    assert [tuple(x.shape) for x in each(maps)] == [(1, 1, 2, 2), (1, 1, 1, 1)]
    with pytest.raises(ValueError, match="shorter"):
        each(maps[:1])


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param("middle", id="unknown name"),
        pytest.param(slice(4, 2), id="empty"),
        pytest.param(slice(6, None), id="beyond the last"),
        pytest.param(slice(0, 6, 2), id="every other level"),
    ],
)
def test_levels_that_are_not_there(levels: str | slice) -> None:
    with pytest.raises(ValueError, match="levels"):
        on_meta("cfsam", levels=levels)


@pytest.mark.parametrize("attention", ["scsa", "selfish"])
def test_an_attention_that_does_not_fit_names_those_that_do(attention: str) -> None:
    with pytest.raises(ValueError, match=f"no attention '{attention}' for 'ssd300_vgg16', which takes cfsam"):
        on_meta(attention)


def test_attention_kwargs_reach_the_attention() -> None:
    model = on_meta("cfsam", levels="deep", attention_kwargs={"dim": 64, "num_heads": 4, "depth": 2})
    assert model.state_dict()[f"{NECK}blocks.1.mlp.0.weight"].shape == (256, 64)


def test_checkpoints_of_torchvisions_detector_fit() -> None:
    theirs = {name: torch.full(tensor.shape, 0.5) for name, tensor in on_meta().state_dict().items()}
    model = on_meta("cfsam")
    missing, unexpected = model.load_state_dict(theirs, strict=False, assign=True)
    with torch.device("meta"):
        own = fastattn.CFSAM(CHANNELS).state_dict()
    assert missing == [NECK + name for name in own]
    assert not unexpected
    assert {tensor.is_meta for name, tensor in model.state_dict().items() if not name.startswith(NECK)} == {False}


def test_pretrained_is_the_backbone_and_weights_the_whole_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import VGG16_Weights, _api, vgg16

    asked: list[object] = []

    def fake_vgg16(*, weights, **options):
        asked.append(weights)
        return vgg16(**options)

    def fake_download(url: str, **options) -> dict[str, Tensor]:
        asked.append(url)
        with torch.device("meta"):
            return models.create("ssd300_vgg16").state_dict()

    monkeypatch.setattr(detection.ssd, "vgg16", fake_vgg16)
    on_meta("cfsam")
    on_meta("cfsam", pretrained=True)
    assert asked == [None, VGG16_Weights.IMAGENET1K_FEATURES]  # the weights that SSD's normalisation goes with
    asked.clear()
    monkeypatch.setattr(_api, "load_state_dict_from_url", fake_download)
    with torch.device("meta"):
        model = models.create("ssd300_vgg16", "cfsam", weights="DEFAULT")
    assert detection.SSD300_VGG16_Weights.DEFAULT.url in asked
    assert model.head.classification_head.num_columns == 91


def test_without_torchvision_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    with pytest.raises(ImportError, match=r"needs torchvision: pip install 'fastattn\[models\]'"):
        models.create("ssd300_vgg16", "cfsam")


@pytest.mark.full
def test_copies_and_checkpoints_are_whole(detector: nn.Module, pyramid: list[Tensor]) -> None:
    loaded = on_meta("cfsam")
    loaded.load_state_dict(copy.deepcopy(detector).state_dict(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded.head(pyramid), detector.head(pyramid), rtol=1e-4, atol=1e-4)


def test_channels_last(detector: nn.Module, pyramid: list[Tensor]) -> None:
    model = copy.deepcopy(detector.head).to(memory_format=torch.channels_last)
    maps = [x.contiguous(memory_format=torch.channels_last) for x in pyramid]
    with torch.no_grad():
        torch.testing.assert_close(model(maps), detector.head(pyramid), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_detects_on_photographs(
    detector: nn.Module, photographs: list[Tensor], backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "native":
        request.getfixturevalue("native")
    with torch.no_grad(), fastattn.use_backend(backend):
        found = detector(photographs)
    for image, detections in zip(photographs, found, strict=True):
        boxes, scores, labels = detections["boxes"], detections["scores"], detections["labels"]
        height, width = image.shape[1:]
        assert len(boxes) == len(scores) == len(labels) > 0
        assert ((boxes >= 0) & (boxes <= torch.tensor([width, height, width, height]))).all()
        assert scores.isfinite().all()
        assert ((labels >= 1) & (labels <= 20)).all()


def training_step(model: nn.Module, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses, and the gradients of what is trained by name; a square for every level, or it might learn nothing."""
    height, width = image.shape[1:]
    centre = torch.tensor([width, height, width, height]) / 2
    sides = min(height, width) * torch.tensor([0.09, 0.2, 0.4, 0.6, 0.78, 0.95])
    boxes = centre + sides[:, None] / 2 * torch.tensor([-1, -1, 1, 1])
    losses = model([image], [{"boxes": boxes, "labels": torch.arange(1, 7)}])
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(sum(losses.values()), list(trained.values()))
    return losses, dict(zip(trained, gradients, strict=True))


@pytest.mark.usefixtures("native")
def test_training_step_is_the_references(detector: nn.Module, photographs: list[Tensor]) -> None:
    model = copy.deepcopy(detector).train()
    model.backbone.features.requires_grad_(False)  # the largest maps, far from the attention
    torch.set_num_threads(2)
    with fastattn.use_backend("reference"):
        expected, expected_gradients = training_step(model, photographs[0])
    with fastattn.use_backend("native"):
        losses, gradients = training_step(model, photographs[0])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    for name, gradient in expected_gradients.items():
        if not name.endswith("k.bias"):  # adds the same to all scores of a row: its gradient is zero
            assert 0 < gradient.norm() < torch.inf, name
            assert (gradients[name] - gradient).norm() < 1e-3 * gradient.norm(), name


@pytest.mark.usefixtures("native")
def test_autocast_mixes_the_levels_dtypes(detector: nn.Module) -> None:
    images = torch.rand(1, 3, 300, 300)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps = list(detector.backbone(images).values())
        assert [x.dtype for x in maps] == [torch.float32] + 5 * [torch.bfloat16]  # the first is rescaled in float32
        with fastattn.use_backend("reference"):
            expected = detector.head(maps)
        with fastattn.use_backend("native"):
            found = detector.head(maps)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert (found[name] - tensor).float().norm() < 0.02 * tensor.float().norm()
