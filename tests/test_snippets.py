"""The documents' Python runs as it is printed, with what its reader has at hand."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastattn
from fastattn import models
from tests.integrations import foreign
from tests.test_documents import PAGES, ROOT

Names = dict[str, Any]


def snippets(page: Path) -> dict[str, str]:
    found = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {f"{page.relative_to(ROOT).as_posix()}, {i}": code for i, code in enumerate(found, 1)}


RECIPES = ROOT / "CONTRIBUTING.md"  # tests/test_recipes.py
SNIPPETS = {name: code for page in PAGES if page != RECIPES for name, code in snippets(page).items()}


class Bottleneck(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(16, 16, 3, padding=1)


def other_authors() -> Names:
    return {"fastattn": fastattn, "model": nn.Sequential(foreign.SCSA(16))}


def a_network() -> Names:
    model = nn.Sequential()
    for name, block in (("stem", nn.Conv2d(3, 16, 1)), ("layer2", Bottleneck()), ("layer3", nn.Sequential(nn.ReLU()))):
        model.add_module(name, block)
    return {"fastattn": fastattn, "model": model, "Bottleneck": Bottleneck}


def a_yolo() -> Names:
    ultralytics = pytest.importorskip("ultralytics")
    return {"fastattn": fastattn, "YOLO": lambda weights: ultralytics.YOLO(Path(weights).with_suffix(".yaml").name)}


# what a snippet takes for granted, and the packages that it needs
READERS: dict[str, tuple[Callable[[], Names], tuple[str, ...]]] = {
    "README.md, 1": (dict, ("timm",)),
    "docs/export.md, 1": (lambda: {"torch": torch}, ("timm", "onnxscript", "onnxruntime")),
    "docs/frameworks.md, 1": (other_authors, ()),
    "docs/frameworks.md, 2": (a_network, ()),
    "docs/frameworks.md, 3": (dict, ("ultralytics",)),
    "docs/frameworks.md, 4": (a_yolo, ("ultralytics",)),
    "docs/frameworks.md, 5": (dict, ("mmengine",)),
    "docs/modules.md, 1": (dict, ("timm", "torchvision")),
    "docs/modules.md, 2": (lambda: {"models": models}, ("timm", "torchvision")),
    "docs/modules.md, 3": (dict, ("timm",)),
    "docs/zoo.md, 1": (dict, ()),
}


def test_each_snippet_has_a_reader() -> None:
    assert SNIPPETS.keys() == READERS.keys()


@pytest.mark.full  # networks
@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, needs = READERS[name]
    for package in needs:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = reader()
    exec(compile(SNIPPETS[name], name, "exec"), names)
    if "logits" in names:
        assert names["logits"].shape == (1, 1000)
    if "report" in names:
        assert "replaced by fastattn.SCSA" in str(names["report"])
