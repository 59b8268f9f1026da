"""Reports of the developers' benchmarks: tables on the screen and in Markdown, bars, and the README's part."""

import json
import sys
from pathlib import Path

import pytest

from fastattn import report
from fastattn.report import Table, chart, graphs, load, tables, to_markdown, to_text, update_readme, write_report
from tests.report.cases import DESCRIBED, benchmark


@pytest.fixture
def result() -> dict:
    model = {"suite": "model", "model": "resnet50", "placed": "SCSA", "shape": [8, 3, 224, 224]}
    return {
        "machine_info": {"cpu": "Some CPU", "threads": 2, "isa": "avx2", "versions": {"torch": "2.11.0"}},
        "commit_info": {"id": "0123456789abcdef"},
        "benchmarks": [
            benchmark("eager", 4.0, {"compile": 0.5, "native": 0.05}),
            benchmark("compile", 2.0, {"eager": 2.0, "native": 0.1}),
            benchmark("native", 0.2, {"eager": 20.0, "compile": 10.0}),
            benchmark("native", 0.6, {"eager": 15.0}, work="forward + backward"),
            benchmark("copy", 1.0, {"native": 1 / 3}, suite="copy"),
            benchmark("native", 3.0, {"copy": 1 / 3}, suite="copy"),
            benchmark("plain", 100.0, {"eager": 1.25, "native": 1.02}, **model),
            benchmark("native", 102.0, {"plain": 0.98}, **model),
        ],
        "fastattn": {
            **DESCRIBED,
            "selection": "default",
            "summary": [
                {
                    "what": "SCSA forward",
                    "unit": "times eager's speed",
                    "relation": ">=",
                    "asked": 12,
                    "measured": 20.04,
                    "median": 19.0,
                    "met": True,
                    "worst": {"value": 11.5, "case": "(8, 512, 7, 7) contiguous"},
                },
                {
                    "what": "copy",
                    "unit": "times",
                    "relation": "<=",
                    "asked": 4,
                    "measured": 5.0,
                    "median": 5.0,
                    "met": False,
                },
                {"what": "saved", "unit": "times x", "relation": "<=", "asked": 1.1, "measured": None},
            ],
        },
    }


@pytest.fixture
def result_file(result: dict, tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    return path


def by_title(result: dict) -> dict[str, Table]:
    return {table.title: table for table in tables(result)}


def named(table: Table, row: tuple[str, ...]) -> dict[str, str]:
    """A row's cells by column, without the spread of rounds that were all alike."""
    return {name: cell.removesuffix(" (0.0%)") for name, cell in zip(table.columns, row, strict=True)}


def test_summary_says_asked_measured_missed_and_what_was_not_measured(result: dict) -> None:
    table = by_title(result)["Asked and measured"]
    assert table.rows[0] == (
        "SCSA forward",
        "times eager's speed",
        "≥ 12",
        "20.0",
        "19.0",
        "worst 11.5: (8, 512, 7, 7) contiguous",
    )
    assert table.rows[1][2:4] == ("≤ 4", "5.00 (missed)")
    assert table.rows[2][3] == "not measured"
    assert "Some CPU" in table.notes[0]
    assert "0123456789ab" in table.notes[0]
    assert table.notes[1].startswith("One measurement each")


def test_module_table_has_a_row_for_each_case_and_a_column_for_each_rival(result: dict) -> None:
    table = by_title(result)["SCSA as a module"]
    first, second = (named(table, row) for row in table.rows)
    assert (first["eager ms"], first["compile ms"], first["native ms"]) == ("4.00", "2.00", "0.200")
    assert (first["native vs eager"], first["native vs compile"]) == ("20.0×", "10.0×")
    assert (second["work"], second["eager ms"], second["native vs eager"]) == (
        "forward + backward",
        "-",
        "15.0×",
    )


def test_the_copy_table_compares_times(result: dict) -> None:
    table = by_title(result)["SCSA beside out.copy_(x)"]
    assert named(table, table.rows[0])["native time / copy time"] == "3.00×"


def test_model_table_gives_the_share_of_the_plain_model(result: dict) -> None:
    table = by_title(result)["Whole models"]
    row = named(table, table.rows[0])
    assert (row["plain images/s"], row["native images/s"], row["native / plain"]) == ("80.0", "78.4", "0.980")


@pytest.fixture
def cfsam_result(result: dict) -> dict:
    attention = {"suite": "attention", "shape": [4, 1940, 256], "heads": 8, "parts": 2, "gflop_per_s": 123.4}
    attention |= {"q, k, v": "(4, 1940, 8 × 32)"}
    long = attention | {"shape": [1, 20000, 256], "q, k, v": "(1, 20000, 8 × 32)"}
    pyramid = {"suite": "pyramid", "shape": [4, 1940, 256], "ablation": "LFE + GFE"}
    model = {"suite": "model", "model": "ssd300_vgg16", "operation": "cfsam", "shape": [4, 3, 300, 300]}
    models = {levels: model | {"levels": levels, "placed": f"CFSAM on {levels} levels"} for levels in ("all", "deep")}
    result["benchmarks"] = [
        benchmark("eager", 200.0, {"native": 0.25}, **attention),
        benchmark("sdpa view", 51.0, {"eager": 3.9}, **attention),
        benchmark("native", 50.0, {"eager": 4.0, "sdpa view": 1.02}, **attention),
        benchmark("sdpa view", 800.0, {"native": 1.0}, **long),
        benchmark("native", 800.0, {"sdpa view": 1.0}, **long),
        benchmark("eager", 150.0, {"native": 0.5}, **pyramid),
        benchmark("native", 100.0, {"eager": 1.5}, **pyramid),
        *(benchmark("plain", 100.0, {"native": 1.5}, **models[levels]) for levels in models),
        benchmark("native", 150.0, {"plain": 0.667}, **models["all"]),
        {"name": "memory", "extra_info": {"suite": "memory", "shape": [1, 20000, 256], "peak_memory_bytes": 1}},
    ]
    return result


def test_attention_is_compared_with_what_fits(cfsam_result: dict) -> None:
    table = by_title(cfsam_result)["Partitioned attention"]
    first, second = (named(table, row) for row in table.rows)
    assert (first["q, k, v"], first["parts"], first["native GFLOP/s"]) == ("(4, 1940, 8 × 32)", "2", "123")
    assert (first["native vs eager"], first["native vs sdpa view"]) == ("4.00×", "1.02×")
    assert (second["eager ms"], second["native vs eager"], second["native vs sdpa view"]) == ("-", "-", "1.00×")


def test_a_pyramids_table_tells_ablations_apart_and_a_detectors_levels(cfsam_result: dict) -> None:
    found = by_title(cfsam_result)
    pyramid = found["CFSAM at SSD300's levels"]
    row = named(pyramid, pyramid.rows[0])
    assert (row["batch"], row["tokens"], row["parts of it"]) == ("4", "1940", "LFE + GFE")
    assert (row["native vs eager"], row["native images/s"]) == ("1.50×", "80.0")
    models = found["Whole models"]
    assert [row[1] for row in models.rows] == ["CFSAM on all levels", "CFSAM on deep levels"]
    assert models.rows[0][-1] == "0.667"
    assert models.notes[0].startswith("300 x 300 photographs")


def test_cfsams_part_of_a_report(cfsam_result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    panels = chart.suite_panels(cfsam_result)
    assert [panel.title.partition(":")[0] for panel in panels] == [
        "Partitioned attention forward, float32",
        "CFSAM forward, float32",
    ]
    assert list(panels[0].groups) == ["(4, 1940, 256)\n2 parts"]
    assert len(chart.model_panels(cfsam_result)[0].groups) == 2
    write_report({"one": cfsam_result}, tmp_path)
    assert "### CFSAM at SSD300's levels" in (tmp_path / "report.md").read_text()
    section = report.readme_section(cfsam_result, "result.json")
    assert section.count("### ") == 4


@pytest.fixture
def lga_result(result: dict) -> dict:
    case = {"suite": "lga", "operation": "lga", "shape": [8, 24, 20, 20], "heads": 6}
    training = {"suite": "convergence", "operation": "lga", "shape": [48, 1, 8, 8], "accuracy": 0.9816}
    trainings = [training | {"backend": name, "losses": [2.0, 1.0, 0.25]} for name in ("reference", "native")]
    result["benchmarks"] = [
        benchmark("eager", 20.0, {"native": 0.2}, **case, contraction="paper"),
        benchmark("native", 4.0, {"eager": 5.0}, **case, contraction="paper"),
        benchmark("eager", 20.0, {"native": 0.1}, **case, contraction="released"),
        benchmark("native", 2.0, {"eager": 10.0}, **case, contraction="released"),
        *({"name": "training", "extra_info": facts} for facts in (*trainings, trainings[0] | {"operation": "scsa"})),
    ]
    return result


def test_lgas_table_tells_contractions_apart(lga_result: dict) -> None:
    table = by_title(lga_result)["LGA as a module"]
    paper, released = (named(table, row) for row in table.rows)
    assert (paper["shape"], paper["heads"], paper["contraction"]) == ("(8, 24, 20, 20)", "6", "paper")
    assert (paper["native vs eager"], released["native vs eager"]) == ("5.00×", "10.0×")
    assert released["native images/s"] == "4000"
    assert "### LGA as a module" in report.readme_section(lga_result, "result.json")
    panels = chart.suite_panels(lga_result)
    assert [panel.title for panel in panels] == ["LGA forward, float32: times eager's speed"]
    groups = [f"(8, 24, 20, 20)\n{contraction}\ncontiguous" for contraction in ("paper", "released")]
    assert list(panels[0].groups) == groups


@pytest.fixture
def interaction_result(result: dict) -> dict:
    acp = {"suite": "acp", "operation": "acp", "shape": [8, 96, 56, 56]}
    cat = {"suite": "cat", "operation": "cat", "shape": [4, 3136, 192]}
    model = {"suite": "model", "model": "vit_tiny_patch16_224", "operation": "interaction", "shape": [8, 3, 224, 224]}
    model |= {"placed": "ACP + CAT"}
    result["benchmarks"] = [
        *(benchmark("eager", 20.0, {"native": 0.2}, **acp, layers=layers) for layers in (2, 3)),
        *(benchmark("native", 4.0, {"eager": 5.0, "composed": 1.5}, **acp, layers=layers) for layers in (2, 3)),
        *(benchmark("composed", 6.0, {"native": 0.667}, **acp, layers=layers) for layers in (2, 3)),
        *(benchmark("eager", 20.0, {"native": 0.5}, **cat, concepts=concepts) for concepts in (64, 256)),
        *(benchmark("native", 10.0, {"eager": 2.0}, **cat, concepts=concepts) for concepts in (64, 256)),
        *(benchmark("plain", 80.0, {}, **model, work=work) for work in ("forward", "forward + backward")),
        benchmark("native", 100.0, {"plain": 0.8}, **model, work="forward + backward"),
    ]
    return result


def test_tables_of_acp_and_cat_tell_layers_and_concepts_apart(interaction_result: dict) -> None:
    found = by_title(interaction_result)
    acp, cat, whole = (found[title] for title in ("ACP as a module", "CAT as a module", "Whole models"))
    two, three = (named(acp, row) for row in acp.rows)
    assert (two["shape"], two["layers"], three["layers"]) == ("(8, 96, 56, 56)", "2", "3")
    assert (two["native vs eager"], two["native vs composed"], two["composed ms"]) == ("5.00×", "1.50×", "6.00")
    assert "composed vs eager" not in acp.columns
    few, many = (named(cat, row) for row in cat.rows)
    assert (few["tokens"], few["concepts"], many["concepts"]) == ("(4, 3136, 192)", "64", "256")
    forward, training = (named(whole, row) for row in whole.rows)
    assert (forward["attention"], forward["work"], forward["native images/s"]) == ("ACP + CAT", "forward", "-")
    assert (training["work"], training["native / plain"]) == ("forward + backward", "0.800")
    assert whole.notes[0].startswith("224 x 224 photographs, float32; plain")


def test_charts_of_acp_and_cat(interaction_result: dict) -> None:
    acp, cat = chart.suite_panels(interaction_result)
    assert [panel.title.partition(":")[0] for panel in (acp, cat)] == ["ACP forward, float32", "CAT forward, float32"]
    assert list(acp.groups) == [f"(8, 96, 56, 56)\n{layers} layers\ncontiguous" for layers in (2, 3)]
    assert list(cat.groups) == [f"(4, 3136, 192)\n{concepts} concepts" for concepts in (64, 256)]
    [models] = chart.model_panels(interaction_result)
    assert len(models.groups) == 2
    section = report.readme_section(interaction_result, "result.json")
    assert [section.count(f"### {name} as a module") for name in ("ACP", "CAT")] == [1, 1]


def test_trainings_have_a_table_and_curves(lga_result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = by_title(lga_result)["Training on digits"]
    assert table.rows[1] == ("LGA", "native", "3", "2.00", "0.250", "98.2")
    assert [row[:2] for row in table.rows[::2]] == [("LGA", "reference"), ("SCSA", "reference")]
    assert graphs.curves(lga_result) == {
        "LGA": {"reference": [2.0, 1.0, 0.25], "native": [2.0, 1.0, 0.25]},
        "SCSA": {"reference": [2.0, 1.0, 0.25]},
    }
    written = write_report({"one": lga_result}, tmp_path)
    assert tmp_path / "plots" / "convergence.png" in written
    assert "](plots/convergence.png)" in written[0].read_text()


def test_tables_without_rows_are_left_out(result: dict) -> None:
    assert "SCSA in two precisions" not in by_title(result)


def test_text_and_markdown_hold_the_same_cells(result: dict) -> None:
    for table in tables(result):
        text, markdown = to_text(table), to_markdown(table)
        for cell in (*table.columns, *(cell for row in table.rows for cell in row), *table.notes):
            assert " ".join(cell.split()) in " ".join(text.split())  # notes are broken into lines
            assert cell in markdown
        widths = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
        assert widths == {len(table.columns) + 1}


def test_command_writes_markdown_and_a_png(
    result_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    directory = tmp_path / "new" / "report"
    assert report.main([str(result_file), "-o", str(directory)]) == 0
    markdown = (directory / "report.md").read_text()
    assert "20.0×" in markdown
    assert "](plots/whole-models.png)" in markdown
    assert "convergence" not in markdown
    assert (directory / "plots" / "whole-models.png").read_bytes().startswith(b"\x89PNG")
    assert str(directory / "report.md") in capsys.readouterr().out


def test_a_result_of_nothing_has_a_report_all_the_same(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result["benchmarks"], result["fastattn"]["summary"] = [], []
    written = write_report({"one": result}, tmp_path)
    assert {path.suffix for path in written} == {".md", ".tex", ".html", ".csv", ".txt"}
    assert "Some CPU" in (tmp_path / "report.md").read_text()


def test_readme_is_replaced_between_its_markers_and_nowhere_else(result_file: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert report.main([str(result_file), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- results: begin -->\n")
    assert text.endswith("<!-- results: end -->\nafter\n")
    assert "old" not in text
    assert text.count("### Asked and measured") == 1
    assert str(tmp_path) not in text


def test_readme_without_markers_is_left_alone(result: dict, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    with pytest.raises(report.ResultError, match="lacks the markers"):
        update_readme(result, readme, "result.json")
    assert readme.read_text() == "no markers"


@pytest.fixture
def gpu_result(result: dict) -> dict:
    def rows(suite: str, launch: str, **facts) -> list[dict]:
        over = {"eager": 4.0, "compile": 2.0, "copy": 0.5}
        rivals = {name: benchmark(name, 0.02, over, suite=suite, launch=launch, **facts) for name in (*over, "triton")}
        rivals["triton"]["extra_info"] |= {"median_ms": 0.01234, "share_of_copy": 0.5}
        rivals["triton"]["extra_info"]["speedup"]["eager"] = {"least": 9.0, "median": 4.5}
        return list(rivals.values())

    model = {"suite": "model", "model": "resnet50", "shape": [32, 3, 224, 224], "launch": "graph", "dtype": "bfloat16"}
    asked = {"relation": ">=", "asked": 0.4, "measured": 0.5, "least": 0.6, "met": True}
    result["machine_info"] |= {"gpu": "NVIDIA Fake 100"}
    result["machine_info"]["gpu_details"] = {"driver": "1.2.3", "cuda": "13.0", "clocks_mhz": {"sm": 1980.0}}
    result["benchmarks"] = [
        *rows("module", "launches", shape=[32, 64, 56, 56], dtype="bfloat16"),
        *rows("module", "graph", shape=[32, 64, 56, 56], dtype="bfloat16"),
        *rows("module", "graph", shape=[256, 64, 56, 56], dtype="bfloat16"),
        *rows("module", "graph", shape=[32, 64, 56, 56], dtype="float32"),
        *rows("tuned", "graph", shape=[32, 128, 28, 28], dtype="bfloat16"),
        benchmark("plain", 10.0, {"triton": 1.02}, **model),
        benchmark("triton", 10.0, {"plain": 0.98}, **model),
    ]
    summary = [asked | {"what": "copy", "unit": "of its bandwidth"}]
    summary.append(asked | {"what": "tuned", "unit": "times", "asked": None, "measured": 1.5})
    result["fastattn"] |= {"device": "cuda", "summary": summary}
    return result


def test_a_gpus_tables_go_by_the_median_and_tell_launches_from_graphs(gpu_result: dict) -> None:
    found = by_title(gpu_result)
    module = found["SCSA as a module"]
    row = named(module, module.rows[1])
    assert (row["launch"], row["triton µs"], row["triton vs eager"]) == ("graph", "12.3", "4.50×")
    assert row["triton / copy GB/s"] == "0.500"
    assert len(module.rows) == 4
    assert len(found["SCSA beside max-autotune"].rows) == 1
    models = named(found["Whole models"], found["Whole models"].rows[0])
    assert (models["dtype"], models["launch"], models["triton / plain"]) == ("bfloat16", "graph", "0.980")
    asked = found["Asked and measured"]
    assert asked.columns[4] == "by least"
    assert asked.rows == [
        ("copy", "of its bandwidth", "≥ 0.4", "0.500", "0.600", "-"),
        ("tuned", "times", "-", "1.50", "0.600", "-"),
    ]
    for fact in ("NVIDIA Fake 100", "driver 1.2.3", "sm 1980 MHz", "CUDA 13.0", "torch 2.11.0"):
        assert fact in asked.notes[0]
    assert "Some CPU" not in asked.notes[0]


def test_a_gpus_chart(gpu_result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    panels = chart.suite_panels(gpu_result) + chart.model_panels(gpu_result)
    assert [panel.title for panel in panels[:2]] == [
        "SCSA forward, bfloat16, launches: times eager's speed",
        "SCSA forward, bfloat16, graph: times eager's speed",
    ]
    assert next(iter(panels[0].groups.values()))["triton"] == 4.5
    assert list(panels[-1].groups) == ["resnet50, batch 32\ncontiguous, bfloat16, graph"]
    assert tmp_path / "plots" / "whole-models.svg" in write_report({"one": gpu_result}, tmp_path)


def test_readme_holds_a_cpus_and_a_gpus_result(gpu_result: dict, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    empty = f"<!-- gpu results: begin -->\n\n{report.NO_GPU}\n\n<!-- gpu results: end -->\n"
    readme.write_text(f"<!-- results: begin -->\n<!-- results: end -->\nbetween\n{empty}after\n")
    cpu = gpu_result | {"fastattn": gpu_result["fastattn"] | {"device": "cpu"}, "benchmarks": []}
    cpu["fastattn"] |= {"summary": []}
    update_readme(cpu, readme, "cpu.json")
    assert empty in readme.read_text()
    update_readme(gpu_result, readme, "gpu.json")
    text = readme.read_text()
    assert report.NO_GPU not in text
    first, second = text.index("cpu.json"), text.index("gpu.json")
    assert first < text.index("between") < second < text.index("after")
    assert "(32, 64, 56, 56)" in text
    assert "(256, 64, 56, 56)" not in text  # has no room there
    assert "float32" not in text


def test_the_results_say_what_was_measured_on_a_gpu() -> None:
    root = Path(__file__).parents[2]
    section = (root / "docs" / "results.md").read_text().partition("<!-- gpu results: begin -->")[2]
    section = section.partition("<!-- gpu results: end -->")[0].strip()
    paths = [path for path in (root / "benchmarks" / "results").glob("*.json") if path.name != "latest.json"]
    measured = [path.name for path in paths if load(path)["fastattn"].get("device") == "cuda"]
    if measured:
        assert any(name in section for name in measured)
    else:
        assert section == report.NO_GPU


def test_nothing_to_do_is_said(result_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main([str(result_file)])
    assert "give -o DIR" in capsys.readouterr().err


def test_without_matplotlib_the_command_names_the_extra(
    result_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert report.main([str(result_file), "-o", str(tmp_path / "out")]) == 2
    assert "fastattn[report]" in capsys.readouterr().err
