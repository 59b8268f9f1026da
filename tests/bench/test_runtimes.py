"""The table of exported networks: a runtime is timed if it computes what eager does, and says so if it does not."""

import json
from functools import partial

import pytest
import torch
from torch import nn

import fastattn
from fastattn.bench import command, runtimes
from fastattn.bench.run import Protocol
from fastattn.bench.tables import Row, Setting, Subject
from fastattn.report import tables

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]

SHAPE = 2, 3, 16, 16
PROTOCOL = Protocol(Setting(batches=(2,)), repeats=3)


class Network(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(3, 16, 3), attention, nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.attention(self.stem(x)).mean((2, 3)))


def tiny(setting):
    torch.manual_seed(0)
    scsa = Network(fastattn.SCSA(16)).eval()
    return Subject(scsa, (torch.randn(SHAPE),), Network(nn.Identity()).eval())


ROW = Row(runtimes.TABLE, "scsa", SHAPE, tiny, model="tiny", fast=True)


def test_a_runtime_that_is_missing_fails_or_is_wrong_is_a_row_that_says_so(monkeypatch):
    def prepared(name, model, x, path):
        if name == "onnxruntime":
            raise ModuleNotFoundError("onnxruntime is not installed")
        if name == "openvino":
            return lambda x: model(x) * 1.01
        return partial(model)

    monkeypatch.setattr(runtimes, "prepared", prepared)
    records = runtimes.measure(ROW, PROTOCOL)
    assert [(record["attention"], record["rival"]) for record in records] == [
        (attention, name) for attention in ("none", "scsa") for name in runtimes.NAMES
    ]
    for attention, found in (("none", records[:5]), ("scsa", records[5:])):
        known = {record["rival"]: record for record in found}
        assert known["onnxruntime"]["failed"] == "ModuleNotFoundError: onnxruntime is not installed"
        assert known["openvino"]["failed"].startswith("AssertionError")
        over = {"eager", "compile", *(["plain"] if attention == "scsa" else [])}
        assert known["aoti"]["speedup"].keys() == over
        assert known["aoti"]["images_per_s"] > 0


def test_the_table_is_read_by_the_report(monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "prepared", lambda name, model, x, path: partial(model))
    monkeypatch.setitem(command.TABLES, runtimes.TABLE, lambda setting: iter([ROW]))
    path = tmp_path / "result.json"
    assert command.main([runtimes.TABLE, "--device", "cpu", "--batch", "2", "--repeats", "3", "-o", str(path)]) == 0
    table, *_ = tables(json.loads(path.read_text()))
    shares = dict(zip(table.columns, table.rows[1], strict=True))
    assert "onnxruntime images/s" in shares
    assert float(shares["aoti of plain"].split()[0]) > 0
    assert command.main([runtimes.TABLE, "--device", "cpu", "--dtype", "bfloat16", "-o", str(path)]) == 2


@pytest.mark.full
def test_the_runtimes_themselves():
    for name in runtimes.RUNTIMES[1:]:
        pytest.importorskip(name)
    pytest.importorskip("onnxscript")
    records = runtimes.measure(ROW, PROTOCOL)
    assert [record.get("failed") for record in records] == [None] * 10
