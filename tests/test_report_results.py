"""Result files: what is read, what is refused, what counts as failed."""

import json
from pathlib import Path

import pytest

from fastattn import report
from fastattn.report import failures, load, records
from tests.report_cases import benchmark, failed, result_of


def write(path: Path, benchmarks: list[dict], **changes) -> Path:
    path.write_text(json.dumps(result_of(benchmarks) | changes))
    return path


def ours(**changes) -> str:
    return json.dumps({"benchmarks": [], "fastattn": {"schema": report.SCHEMA} | changes})


def without(*names: str) -> str:
    made = benchmark("native", 1.0, {})
    made["extra_info"] = {name: value for name, value in made["extra_info"].items() if name not in names}
    return json.dumps(result_of([made]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param(" \n", "is empty", id="blank"),
        pytest.param('{"benchmarks": [', "cut short", id="truncated"),
        pytest.param('{"benchmarks": []}', "no result", id="pytest-benchmark's, of another project"),
        pytest.param("[1, 2]", "no result", id="another JSON"),
        pytest.param(ours(schema=99), "schema 99; this version reads 2", id="a schema to come"),
        pytest.param(ours(schema=1), "schema 1; this version reads 2", id="the schema before"),
        pytest.param(without("rival"), r"test\[native\] lacks rival", id="no rival"),
        pytest.param(without("quartiles_ms", "speedup"), "lacks quartiles_ms, speedup", id="no spread"),
        pytest.param(
            json.dumps(result_of([benchmark("native", 1.0, {}, suite="throughput")])),
            "lacks table, model, attention",
            id="throughput of no table",
        ),
        pytest.param(json.dumps(result_of([{"name": "b"}])), "b lacks suite", id="no record"),
        pytest.param(json.dumps(result_of(["text"])), "a benchmark lacks suite", id="no object"),
        pytest.param(
            json.dumps(result_of([benchmark("native", 1.0, {}, shape="8x3")])), "no list of whole numbers", id="shape"
        ),
        pytest.param(
            json.dumps(result_of([benchmark("native", 1.0, {}, speedup={"eager": 2.0})])), "speedup", id="speedup"
        ),
        pytest.param(json.dumps(result_of([]) | {"machine_info": ["cpu"]}), "machine_info", id="machine"),
        pytest.param(
            json.dumps(result_of([{"name": "t", "extra_info": {"suite": "convergence", "operation": "lga"}}])),
            "t lacks backend, losses, accuracy",
            id="a training without losses",
        ),
    ],
)
def test_what_is_no_result_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(report.ResultError, match=message):
        load(path)
    assert report.main([str(path), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastattn report: ")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_one_wrong_file_among_several_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = write(tmp_path / "right.json", [benchmark("native", 1.0, {})])
    (tmp_path / "wrong.json").write_text("{")
    assert report.main([str(right), str(tmp_path / "wrong.json"), "-o", str(tmp_path / "out")]) == 2
    assert "wrong.json is not JSON" in capsys.readouterr().err


def test_a_missing_file_and_an_output_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "result.json", [benchmark("native", 1.0, {})])
    assert report.main([str(tmp_path / "none.json"), "-o", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert report.main([str(path), "-o", str(path / "below a file")]) == 2
    assert "below a file" in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["python", "traffic", "memory"])
def test_a_suite_without_rivals_needs_none(suite: str, tmp_path: Path) -> None:
    info = {"suite": suite, "shape": [1, 64, 56, 56]}
    found = load(write(tmp_path / "result.json", [{"name": "counted", "extra_info": info}]))
    assert records(found, suite) == [info]


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        pytest.param({"median_ms": float("nan")}, "median_ms is nan", id="NaN"),
        pytest.param({"least_ms": float("inf")}, "least_ms is inf", id="infinite"),
        pytest.param({"least_ms": None}, "least_ms is None", id="null"),
        pytest.param({"median_ms": 0.0}, "median_ms is 0.0", id="zero"),
        pytest.param({"quartiles_ms": [1.0, float("nan")]}, "quartiles_ms[1] is nan", id="a quartile"),
        pytest.param({"quartiles_ms": []}, "quartiles_ms is []", id="no quartiles"),
    ],
)
def test_a_time_that_is_none_counts_as_failed(times: dict, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "result.json", [benchmark("eager", 2.0, {}), benchmark("native", 1.0, {}, **times)])
    found = load(path)
    assert [record["rival"] for record in records(found, "module")] == ["eager"]
    [bad] = failures(found)
    assert (bad["rival"], bad["failed"], bad["shape"]) == ("native", reason, [8, 64, 56, 56])
    assert not {"least_ms", "median_ms", "quartiles_ms", "speedup"} & bad.keys()


def test_a_failed_row_needs_no_times_and_keeps_its_reason(tmp_path: Path) -> None:
    late, broken = benchmark("native", 1.0, {}), benchmark("triton", 1.0, {})
    rows = [failed(late, "  out of\nmemory "), failed(broken, ""), benchmark("eager", 1.0, {}, failed=None)]
    found = load(write(tmp_path / "result.json", rows))
    assert [record["failed"] for record in failures(found)] == ["out of memory", "no reason given"]
    assert [record["rival"] for record in records(found, "module")] == ["eager"]


def test_other_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    over = {"eager": float("nan"), "compile": 2.0}
    path = write(tmp_path / "result.json", [benchmark("native", 1.0, over, gb_per_s=float("inf"))])
    [record] = records(load(path), "module")
    assert "gb_per_s" not in record
    assert list(record["speedup"]) == ["compile"]
