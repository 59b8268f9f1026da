"""Result files: what is read, what is refused, what counts as failed."""

import json
import re
from pathlib import Path

import pytest

from fastattn import report
from fastattn.report import failures, load, records
from tests.report.cases import benchmark, failed, result_of, row


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
        pytest.param(ours(schema=99), "schema 99; this version reads 2 and 3", id="a schema to come"),
        pytest.param(ours(schema=1), "schema 1; this version reads 2 and 3", id="the schema before last"),
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


CLOCK = {"least": 1.0, "median": 2.0, "most": 3.0}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        pytest.param({"telemetry": "warm"}, "telemetry that is no object", id="telemetry"),
        pytest.param({"telemetry": [CLOCK]}, "telemetry that is no object", id="telemetry in a list"),
        pytest.param({"telemetry": {"sm_mhz": 1980.0}}, "sm_mhz is not {least", id="a clock that is a number"),
        pytest.param({"telemetry": {"cpu_mhz": {"least": 1.0}}}, "cpu_mhz is not {least", id="a clock without median"),
        pytest.param({"telemetry": {"memory_mhz": CLOCK | {"most": "3"}}}, "memory_mhz", id="a clock of text"),
        pytest.param({"telemetry": {"temperature_c": 61}}, "temperature_c", id="temperature"),
        pytest.param({"telemetry": {"power_w": "400"}}, "power_w is no number", id="power"),
        pytest.param({"telemetry": {"energy_per_image_j": [1]}}, "energy_per_image_j is no number", id="energy"),
        pytest.param({"telemetry": {"clock_reductions": [1]}}, "clock_reductions", id="clock reductions"),
        *(
            pytest.param({name: "many"}, f"has a {name} that is no number: 'many'", id=f"{name} of text")
            for name in ("parameters", "multiply_adds", "images_per_s")
        ),
        pytest.param({"gb_per_s": True}, "gb_per_s that is no number", id="a truth value"),
        *(
            pytest.param({name: 1}, f"has a {name} that is no text: 1", id=f"{name} of a number")
            for name in ("model", "attention", "variant", "table", "dtype", "rival")
        ),
        pytest.param({"attention": None}, "null as its attention", id="no attention"),
        pytest.param({"launch": None}, "null as its launch", id="no launch"),
        pytest.param({"suite": ["throughput"]}, "suite that is no text", id="a suite in a list"),
        pytest.param({"rival": None}, "null as its rival", id="no rival"),
        pytest.param({"shape": [8, 0]}, "no list of whole numbers", id="a shape of nothing"),
        pytest.param(
            {"suite": "model", "placed": "SCSA", "shape": [8, 3]}, "fewer than 4 axes", id="a shape with too few axes"
        ),
        *(
            pytest.param({"speedup": {"eager": {"least": 1, "median": 1, "quartiles": quartiles}}}, "speedup", id=why)
            for why, quartiles in {
                "one quartile": [1.0],
                "quartiles of text": ["1", "2"],
                "no list of quartiles": 1.0,
                "quartiles of null": None,
            }.items()
        ),
    ],
)
def test_a_malformed_record_is_refused(facts: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "result.json", [row("native", 1.0, **facts)])
    with pytest.raises(report.ResultError, match="native") as caught:
        load(path)
    assert message in str(caught.value)
    assert report.main([str(path), "-o", str(tmp_path / "out")]) == 2


ENTRY = {"what": "SCSA", "unit": "times", "relation": ">=", "asked": 1, "measured": 2.0, "median": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"summary": "met"}, "summary that is no list", id="a summary of text"),
        pytest.param({"summary": ["met"]}, "entry that is no object", id="an entry of text"),
        *(
            pytest.param(
                {"summary": [ENTRY | {name: None}]}, f"entry that has no {name}", id=f"an entry without {name}"
            )
            for name in ("what", "unit", "relation")
        ),
        pytest.param({"summary": [ENTRY | {"asked": "more"}]}, "asked that is no number: 'more'", id="asked"),
        pytest.param({"summary": [ENTRY | {"measured": {}}]}, "measured that is no number", id="measured"),
        pytest.param({"summary": [ENTRY | {"worst": {"value": 1.0}}]}, "worst that is not", id="worst"),
        pytest.param({"protocol": ["batch 8"]}, "protocol that is no object", id="protocol"),
        pytest.param({"tables": "modules"}, "tables that are no list", id="tables"),
    ],
)
def test_a_malformed_result_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result_of([], **changes)))
    with pytest.raises(report.ResultError) as caught:
        load(path)
    assert message in str(caught.value)
    assert report.main([str(path), "-o", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"machine_info": {"versions": ["torch 2.11"]}}, id="versions"),
        pytest.param({"machine_info": {"cpu": 7}}, id="CPU"),
        pytest.param({"machine_info": {"gpu_details": {"clocks_mhz": {"sm": "fast"}}}}, id="clocks"),
        pytest.param({"commit_info": {"id": 7}}, id="commit"),
    ],
)
def test_a_malformed_machine_or_commit_is_refused(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(report.ResultError, match=next(iter(changes))):
        load(write(tmp_path / "result.json", [], **changes))


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        pytest.param({"columns": {}}, "suite new without a title", id="no title"),
        pytest.param({"title": "New"}, "columns are no keys by title", id="no columns"),
        pytest.param({"title": "New", "columns": {"batch": "shape.x"}}, "columns are no keys", id="no part of a shape"),
        pytest.param({"title": "New", "columns": {}, "notes": "one"}, "notes are no list of texts", id="notes"),
        pytest.param({"title": "New", "columns": {}, "rate": ["images/s"]}, "rate is not", id="a rate without a key"),
        pytest.param({"title": "New", "columns": {}, "chart": 1}, "chart is no text", id="chart"),
    ],
)
def test_a_malformed_suite_is_refused(suite: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result_of([], suites={"new": suite})))
    with pytest.raises(report.ResultError, match=message):
        load(path)


def test_a_suite_that_the_report_has_never_heard_of_has_its_table(tmp_path: Path) -> None:
    new = {"title": "A new gate", "columns": {"batch": "shape.0", "taps": "taps"}, "yardsticks": ["by hand"]}
    new |= {"options": ["taps"], "label": ["taps"], "chart": "NEW", "notes": ["taps: of its filter."]}
    facts = {"suite": "new", "taps": 5}
    rows = [benchmark("by hand", 2.0, {}, **facts), benchmark("native", 1.0, {"by hand": 2.0, "eager": 3.0}, **facts)]
    path = write(tmp_path / "result.json", rows)
    with pytest.raises(report.ResultError, match="of the suite new, which the result does not describe"):
        load(path)
    path.write_text(json.dumps(result_of(rows, suites={"new": new})))
    result = load(path)
    [table] = report.tables(result)
    assert (table.title, table.columns[:3]) == ("A new gate", ("batch", "taps", "by hand ms"))
    assert table.rows[0][:2] == ("8", "5")
    assert table.rows[0][table.columns.index("native vs by hand")] == "2.00×"
    assert "taps: of its filter." in table.notes
    [panel] = report.chart.suite_panels(result)
    assert panel.title.startswith("NEW forward")
    assert list(panel.groups) == ["(8, 64, 56, 56)\n5 taps"]
    without = benchmark("native", 1.0, {}, suite="new")
    with pytest.raises(report.ResultError, match="lacks taps"):
        load(write(tmp_path / "result.json", [without], fastattn=result["fastattn"]))


ROOT = Path(__file__).parents[2]
OPERATIONS = re.compile(r"scsa|smsa|pcsa|cfsam|\blga\b|\bacp\b|\bcat\b|partition_attention|interaction", re.IGNORECASE)


def test_the_report_names_no_operation_but_those_of_old_results() -> None:
    files = set((ROOT / "fastattn" / "report").glob("*.py")) - {Path(report.schema2.__file__)}
    named = {path.name: OPERATIONS.findall(path.read_text()) for path in files}
    assert len(files) > 10
    assert {name: found for name, found in named.items() if found} == {}


def test_a_result_of_the_schema_before_reads_as_one_of_this(tmp_path: Path) -> None:
    attention = {"suite": "attention", "shape": [4, 1940, 256], "heads": 8, "parts": 2}
    models = {"suite": "model", "model": "some", "shape": [8, 3, 300, 300], "operation": "cfsam", "levels": "deep"}
    rows = [benchmark("native", 1.0, {}, **facts) for facts in ({}, attention, models)]
    path = write(tmp_path / "old.json", rows, fastattn={"schema": 2, "selection": "default"})
    attention["q, k, v"], models["placed"] = "(4, 1940, 8 × 32)", "CFSAM on deep levels"
    rows = [benchmark("native", 1.0, {}, **facts) for facts in ({}, attention, models)]
    old, new = load(path), load(write(tmp_path / "new.json", rows))
    assert report.tables(old) == report.tables(new)
    assert [table.title for table in report.tables(old)] == [
        "SCSA as a module",
        "Partitioned attention",
        "Whole models",
    ]


def test_a_summary_needs_no_more_than_what_unit_and_relation(tmp_path: Path) -> None:
    entries = [{name: ENTRY[name] for name in ("what", "unit", "relation")}, ENTRY, ENTRY | {"median": None}]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result_of([], summary=entries)))
    [table] = report.tables(load(path))
    assert [cells[2:5] for cells in table.rows] == [
        ("-", "not measured", "-"),
        ("≥ 1", "2.00", "2.00"),
        ("≥ 1", "2.00", "-"),
    ]


def test_a_pyramids_levels_are_a_list_and_a_models_a_text(tmp_path: Path) -> None:
    pyramid = {"suite": "pyramid", "ablation": "LFE", "levels": ["512@38", "1024@19"]}
    model = {"suite": "model", "model": "ssd300_vgg16", "levels": "deep", "shape": [8, 3, 300, 300]}
    model |= {"placed": "CFSAM on deep levels"}
    path = write(tmp_path / "result.json", [benchmark("native", 1.0, {}, **facts) for facts in (pyramid, model)])
    assert [len(records(load(path), suite)) for suite in ("pyramid", "model")] == [1, 1]
    path = write(tmp_path / "result.json", [benchmark("native", 1.0, {}, **model | {"levels": ["deep"]})])
    with pytest.raises(report.ResultError, match="levels that is no text"):
        load(path)


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
    telemetry = {"cpu_mhz": CLOCK, "sm_mhz": CLOCK | {"most": float("nan")}, "power_w": float("inf")}
    made = benchmark("native", 1.0, over, gb_per_s=float("inf"), telemetry=telemetry)
    made["extra_info"]["speedup"]["compile"]["quartiles"] = [1.0, float("nan")]
    [record] = records(load(write(tmp_path / "result.json", [made])), "module")
    assert "gb_per_s" not in record
    assert record["speedup"] == {"compile": {"least": 2.0, "median": 2.0}}
    assert record["telemetry"] == {"cpu_mhz": CLOCK}


@pytest.mark.parametrize("digits", [20, 400, 5000])
def test_a_whole_number_that_no_float_can_hold_is_not_finite(digits: int, tmp_path: Path) -> None:
    path = write(tmp_path / "result.json", [benchmark("native", 1.0, {}, parameters=7)])
    path.write_text(path.read_text().replace('"parameters": 7', '"parameters": 1' + "0" * (digits - 1)))
    [record] = records(load(path), "module")
    assert record.get("parameters") == (1e19 if digits == 20 else None)
