"""Ultralytics: attentions in a YAML and in a model that is loaded, trained, resumed, fused and exported."""

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastattn
from fastattn.integrations import ultralytics as ours

ultralytics = pytest.importorskip("ultralytics", minversion="8.4")
tasks = pytest.importorskip("ultralytics.nn.tasks")
ROOT, YAML = ultralytics.utils.ROOT, ultralytics.utils.YAML

pytestmark = pytest.mark.cpu


def description(row: list[Any], after: int = 9) -> dict[str, Any]:
    """YOLOv8n with one row more behind a layer of its backbone."""
    d = YAML.load(str(ROOT / "cfg/models/v8/yolov8.yaml")) | {"scale": "n", "nc": 2}
    d["backbone"].insert(after + 1, row)

    def moved(source: int) -> int:
        return source + 1 if source > after else source

    for layer in d["head"]:
        layer[0] = [*map(moved, layer[0])] if isinstance(layer[0], list) else moved(layer[0])
    return d


def network(row: list[Any]) -> Any:
    ours.register()
    return tasks.DetectionModel(description(row), verbose=False).eval()


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([-1, 1, "SCSA", []], fastattn.SCSA),
        ([-1, 1, "SCSA", [4]], fastattn.SCSA),
        ([-1, 1, "LocalGlobalAttention", [16]], fastattn.LocalGlobalAttention),
        ([-1, 1, "SE", []], torch.nn.Module),
    ],
)
def test_a_row_of_a_yaml_finds_its_channels(row: list[Any], kind: type) -> None:
    model = network(row)
    layer = model.model[10]
    assert isinstance(layer, kind)
    assert (layer.i, layer.f, layer.np) == (10, -1, sum(p.numel() for p in layer.parameters()))
    if isinstance(layer, fastattn.SCSA):
        assert (layer.dim, layer.head_num) == (256, row[3][0] if row[3] else 1)  # 1024, times the width of n
    plain = tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    assert model.info(verbose=True, imgsz=320)[3] > plain.info(verbose=True, imgsz=320)[3] > 0


def test_cfsam_is_from_several_layers() -> None:
    ours.register()
    d = YAML.load(str(ROOT / "cfg/models/v8/yolov8.yaml")) | {"scale": "n", "nc": 2}
    rows = [[[15, 18, 21], 1, "CFSAM", [32]], *([22, 1, "Index", [64 << i, i]] for i in range(3))]
    d["head"][-1:] = [*rows, [[23, 24, 25], 1, "Detect", ["nc"]]]
    model = tasks.DetectionModel(d, verbose=False).eval()
    assert model.model[22].in_channels == (64, 128, 256)
    assert model(torch.rand(1, 3, 64, 64))[0].shape[:2] == (1, 6)


def test_a_map_below_the_window_is_pooled_by_its_shorter_side() -> None:
    layer, x = ours.SCSA(8), torch.rand(1, 8, 4, 6)
    plain = fastattn.SCSA(8, window_size=4)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x))
    assert layer.window_size == 7


def inserted() -> Any:
    yolo = ultralytics.YOLO("yolov8n.yaml")
    fastattn.insert(yolo, {"model.4": "scsa", "model.6": "scsa"})
    return yolo


def test_inserted_and_removed() -> None:
    yolo = ultralytics.YOLO("yolov8n.yaml")
    state, x = copy.deepcopy(yolo.model.state_dict()), torch.rand(1, 3, 64, 64)
    expected = yolo.model.eval()(x)[0]
    found = fastattn.insert(yolo, {"model.4": "scsa", "model.6": "scsa"})
    assert [(each.name, each.channels) for each in found] == [("model.4", 64), ("model.6", 128)]
    missing, unexpected = yolo.model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".fastattn." in key for key in missing)
    with torch.no_grad():
        with_it = yolo.model(x)[0]
        assert not torch.equal(with_it, expected)
        for twin in (copy.deepcopy(yolo.model), copy.deepcopy(yolo.model).fuse(verbose=False)):
            torch.testing.assert_close(twin(x)[0], with_it, rtol=1e-4, atol=1e-3)
    again = tasks.DetectionModel(copy.deepcopy(yolo.model.yaml), verbose=False)
    assert [*again.state_dict()] == [*yolo.model.state_dict()]
    assert fastattn.remove(yolo) == ["model.4", "model.6"]
    assert torch.equal(yolo.model(x)[0], expected)
    assert "fastattn" not in yolo.model.yaml


def test_a_callable_is_refused_as_no_yaml_can_name_it() -> None:
    yolo = ultralytics.YOLO("yolov8n.yaml")
    with pytest.raises(ValueError, match="by names that fastattn knows"):
        fastattn.insert(yolo, "model.4", lambda channels: fastattn.SCSA(channels))
    assert fastattn.remove(yolo) == []


def test_a_missing_or_old_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ultralytics, "__version__", "8.3.9")
    with pytest.raises(ImportError, match=r"needs ultralytics 8.4 or newer, found 8.3.9"):
        ours.register()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images with a bright box in each."""
    from PIL import Image

    random = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        picture = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        picture[16:48, 16:48] += 150
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    path = tmp_path / "data.yaml"
    YAML.save(path, {"path": str(tmp_path), "train": "images", "val": "images", "names": {0: "box"}})
    return path


@pytest.mark.full  # half a minute
def test_it_trains_validates_and_predicts(data: Path, tmp_path: Path) -> None:
    yolo = inserted()
    options = {"imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "plots": False, "project": str(tmp_path)}
    keys = {key for key in yolo.model.state_dict() if ".fastattn." in key}
    yolo.add_callback("on_train_epoch_end", lambda trainer: vars(trainer).update(stop=True))
    yolo.train(data=str(data), epochs=2, **options)  # one, since it is stopped
    assert keys <= yolo.model.state_dict().keys()
    last = ultralytics.YOLO(yolo.trainer.last)
    assert keys <= last.model.state_dict().keys()
    assert last.val(data=str(data), **options).box.map >= 0
    assert len(last.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)) == 1


@pytest.mark.full  # half a minute
@pytest.mark.parametrize("format", ["torchscript", "onnx", "openvino"])
def test_it_is_exported(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in {"onnx": ["onnx", "onnxruntime"], "openvino": ["openvino"]}.get(format, []):
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    yolo = inserted()
    path = yolo.export(format=format, imgsz=64, device="cpu", **({"simplify": False} if format == "onnx" else {}))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = yolo.model.eval().float()(image)[0]
    found = importlib.import_module("ultralytics.nn.autobackend").AutoBackend(path, device=torch.device("cpu"))(image)
    found = found[0] if isinstance(found, list | tuple) else found
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-1)
