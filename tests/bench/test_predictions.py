"""Predictions of the first run on a GPU: the arithmetic on launches that are known, and the table beside a result."""

import pytest

pytest.importorskip("triton")

from benchmarks import predictions
from benchmarks.gpu_first.rows import contests
from benchmarks.machine_code import Compilation, Row
from benchmarks.suites.cfsam import PyramidCase
from benchmarks.suites.models import ModelCase


def row(programs: int, warps: int, moved: int) -> Row:
    compilation = Compilation("module", "pass_kernel", (), (), (("num_warps", warps),), predictions.ARCH)
    return Row(None, "forward", programs, compilation, (), moved)


@pytest.mark.parametrize(
    ("programs", "moved", "work", "cycles"),
    [
        (132, 0, (1000, 0), 1000 * 4 / 4),
        (133, 0, (1000, 0), 2 * 1000 * 4 / 4),  # one processor has two
        (132, 0, (10, 2048_000), 1000 * 4),
        (132, 4_300_000_000, (10, 0), 1e-3 * 1.98e9),
    ],
    ids=["issues", "a second wave", "products", "bytes"],
)
def test_the_longest_of_three_times_is_a_launchs(programs, moved, work, cycles, monkeypatch) -> None:
    monkeypatch.setattr(predictions, "work", lambda row: work)
    found = predictions.predict(row(programs, 4, moved))
    assert found["seconds"]["H200"] == pytest.approx(cycles / 1.98e9 + predictions.START)
    assert found["kernel"] == "pass"


def test_a_loop_of_unknown_length_leaves_the_bytes(monkeypatch) -> None:
    def unknown(row):
        raise RuntimeError("how often a loop is run is unknown")

    monkeypatch.setattr(predictions, "work", unknown)
    found = predictions.predict(row(132, 4, 3_000_000))
    assert found["seconds"]["H100"] == pytest.approx(1e-6 + predictions.START)


def test_every_contest_of_an_operation_is_predicted() -> None:
    stored = predictions.stored()
    assert [*stored] == [name for name, case in contests().items() if not isinstance(case, ModelCase | PyramidCase)]
    for name, launches in stored.items():
        assert {launch["pass"] for launch in launches} == {"forward", *(["backward"] * ("backward" in name))}
        assert all(launch["seconds"]["H200"] <= launch["seconds"]["H100"] for launch in launches)


def test_what_was_measured_stands_beside_what_was_predicted() -> None:
    name, launches = next(iter(predictions.stored().items()))
    twice = 2e3 * predictions.expected(launches, "H200")
    record = {"name": f"{name} triton-graph", "extra_info": {"least_ms": twice}}
    others = [{"name": f"{name} eager-graph", "extra_info": {"least_ms": 1.0}}]
    measured = predictions.graphs({"benchmarks": [record, *others]})
    table = predictions.table({name: launches}, measured)
    assert table.rows[0][0] == name
    assert table.rows[0][-1] == "2.00"
    assert predictions.table({name: launches}, {}).rows[0][-1] == "-"


@pytest.mark.parametrize(
    ("device", "gpu"), [("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H800", "H100"), ("", None)]
)
def test_the_nearest_gpu_is_found_by_its_name(device, gpu) -> None:
    assert predictions.nearest(device) == gpu
