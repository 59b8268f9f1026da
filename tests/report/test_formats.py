"""The formats of a report: LaTeX, CSV, plots, the page, and several results in one."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fastattn import report
from fastattn.report import Table, facts, latex, plots, sheets, tables, write_report
from fastattn.report.naming import slug, unique_slugs
from fastattn.report.plots import answers
from tests.report.cases import bench_result, benchmark, failed, long_result, result_of, row

NASTY = 'a_b & 100% #1 $x$ {y} ~z ^2 \\frac <t> | "q" [o] *s* `c` -- ± × ≥ µ é 漢'


def make_result() -> dict:
    training = {"suite": "convergence", "operation": "lga", "shape": [48, 1, 8, 8], "accuracy": 0.98}
    trainings = [training | {"backend": name, "losses": [2.0, 1.0, 0.25]} for name in ("reference", "native")]
    facts = {"table": "modules", "model": None, "shape": [8, 64, 56, 56], "bytes_moved_at_least": 12_845_056}
    return bench_result(
        [
            *long_result(30)["benchmarks"],
            *(row(rival, 1.0, gb_per_s=12.0, copy_gb_per_s=40.0, **facts) for rival in ("eager", "native")),
            benchmark("eager", 4.0, {"native": 0.5}, least_ms=3.9),
            benchmark("native", 2.0, {"eager": 2.0}),
            benchmark("copy", 1.0, {"native": 2.0}, suite="copy", gb_per_s=50.0, bytes_moved_at_least=5e7),
            failed(benchmark("native", 1.0, {}, shape=[8, 512, 7, 7]), NASTY),
            *({"name": "training", "extra_info": each} for each in trainings),
        ]
    )


@pytest.fixture
def result() -> dict:
    return make_result()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("written")
    write_report({"one": make_result()}, out)
    return out


def test_every_format_is_written_and_named(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = write_report({"one": result}, tmp_path / "out")
    assert all(path.stat().st_size > 0 for path in paths)
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(paths)
    names = {path.name for path in paths}
    assert {"report.md", "report.tex", "report.html", "records.csv"} < names
    assert {"backbones-with-scsa-and-others-scsa-backbones.csv", "roofline.png", "roofline.svg"} < names


def test_a_report_replaces_the_one_before_and_nothing_else(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    before = write_report({"one": result}, out)
    mine, outside = out / "csv" / "mine.csv", tmp_path / "outside.csv"
    for path in (mine, outside):
        path.write_text("mine")
    with (out / "files.txt").open("a") as listed:
        listed.write("../outside.csv\ncsv/../../outside.csv\ncsv\n\nplots/gone.png\n")
    after = write_report({"one": bench_result([row("eager", 100.0)])}, out)
    assert set(after) < set(before)
    assert {path for path in out.rglob("*") if path.is_file()} == {*after, mine}
    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a_b & 100% #1 $x {y}", r"a\_b \& 100\% \#1 {\char36}x \{y\}", id="special characters"),
        pytest.param("\\ ~ ^", r"\textbackslash{} \textasciitilde{} \textasciicircum{}", id="characters with names"),
        pytest.param("± × ≥ ≤ µ °", r"$\pm$ $\times$ $\geq$ $\leq$ $\mu$ $^\circ$", id="signs"),
        pytest.param("<a> | b", r"$<$a$>$ $|$ b", id="other characters in the first font"),
        pytest.param("[4pt] *", r"{[}4pt{]} {*}", id="no argument of a line break"),
        pytest.param("--quick", r"{-}{-}quick", id="no dash"),
        pytest.param("é 漢", "e {[}U+6F22{]}", id="letters without a name"),
        pytest.param("a\n b\tc", "a b c", id="one line"),
    ],
)
def test_latex_is_escaped(text: str, expected: str) -> None:
    assert latex.escape(text) == expected


def balanced(text: str) -> bool:
    bare = re.sub(r"\\[\\{}]", "", text)
    return bare.count("{") == bare.count("}")


def test_a_latex_table_has_rules_alignment_and_cells() -> None:
    table = Table("Title_1", ("name", "native images/s"), [("a|b", "3.73 (2%)"), ("c", "-")], ["a note of 5%"])
    text = latex.to_latex(table)
    assert r"\begin{tabular}{@{}lr@{}}" in text
    assert r"a$|$b & 3.73 (2\%) \\" in text
    assert r"c & -- \\" in text
    assert r"name & \shortstack{native\\images/s} \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\caption{Title\_1}" in text
    assert r"a note of 5\%" in text
    assert balanced(text)


def test_a_long_latex_table_is_continued() -> None:
    table = Table("Long", ("n",), [(str(n),) for n in range(2 * latex.MOST_ROWS + 1)], ["a note"])
    text = latex.to_latex(table)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert "Long (part 3 of 3)" in text
    assert text.count("a note") == 1
    assert latex.to_latex(Table("None", ("n",), [])).count(r"\bottomrule") == 1


def test_a_latex_document_is_ascii_and_balanced(written: Path) -> None:
    text = (written / "report.tex").read_text()
    assert text.isascii()
    assert balanced(text)
    for name in ("document", "table", "tabular", "figure", "description"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    for line in (line for line in text.splitlines() if " & " in line):
        assert line.endswith(r"\\")
    for picture in re.findall(r"\\includegraphics\[[^]]*\]{([^}]*)}", text):
        assert (written / picture).is_file()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_latex_document_compiles(written: Path) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=written, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "mktexpk" not in done.stdout + done.stderr  # a font that a small installation lacks
    assert (written / "report.pdf").read_bytes().startswith(b"%PDF")


def read(text: str) -> list[list[str]]:
    return list(csv.reader(StringIO(text)))


def test_csv_holds_the_tables_cells(result: dict, written: Path) -> None:
    for table in tables(result):
        found = read((written / "csv" / f"{slug(table.title)}.csv").read_text())
        assert found == [list(table.columns), *map(list, table.rows)]


def test_csv_of_records_holds_raw_numbers_and_failures(result: dict) -> None:
    first, *others = read(sheets.records_csv({"one": result}))
    found = [dict(zip(first, cells, strict=True)) for cells in others]
    assert len(found) == len(result["benchmarks"])
    eager = next(cells for cells in found if cells["suite"] == "module" and cells["rival"] == "eager")
    assert (float(eager["least_ms"]), eager["shape"], eager["speedup.native.median"]) == (3.9, "8 64 56 56", "0.5")
    assert [cells["failed"] for cells in found if cells["failed"]] == [NASTY]
    assert found[0]["telemetry.cpu_mhz.median"] == "3000.0"
    assert "losses" in first  # three are few
    assert {cells["result"] for cells in found} == {"one"}


def test_long_lists_are_no_cells() -> None:
    assert sheets.flat({"losses": [1.0] * 100, "shape": [8, 64]}) == {"shape": "8 64"}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        pytest.param("SCSA beside out.copy_(x)", "scsa-beside-out-copy-x", id="punctuation"),
        pytest.param("../../etc", "etc", id="no path"),
        pytest.param("漢", "unnamed", id="nothing left"),
    ],
)
def test_names_of_files(title: str, name: str) -> None:
    assert slug(title) == name


def test_names_of_files_do_not_collide() -> None:
    assert unique_slugs(["a b", "a-b", "c", "A B"]) == ["a-b", "a-b-2", "c", "a-b-3"]


def test_plots_are_those_that_a_result_has_points_for(result: dict) -> None:
    pytest.importorskip("matplotlib")
    found = {plot.name: plot for plot in plots(result)}
    expected = ["scsa-forward-float32", "resnet50-batch-8-224-x-224-scsa-backbones", "accuracy-scsa-backbones"]
    expected += ["roofline", "scaling-batch-scsa-backbones", "convergence"]
    assert [name for name in expected if name not in found] == []
    assert found["accuracy-scsa-backbones"].title.startswith("Accuracy as the paper prints it")
    assert "the paper's" in found["accuracy-scsa-backbones"].svg
    assert "copy, measured" in found["roofline"].svg
    assert plots(result_of([])) == []


def test_a_roofline_is_a_line_through_its_copies_or_the_level_of_a_single_one() -> None:
    def module(side: int, rate: float, copied: float) -> dict:
        facts = {"table": "modules", "model": None, "shape": [8, 64, side, side]}
        return row("eager", 1.0, **facts, bytes_moved_at_least=1e6 * side, gb_per_s=rate, copy_gb_per_s=copied)

    def roofline(*benchmarks: dict) -> report.graphs.Graph:
        [graph] = report.graphs.roofline(bench_result(list(benchmarks)))
        return graph

    single = roofline(module(56, 12.0, 40.0), module(56, 12.0, 40.0))  # two members of a contest share its copy
    assert single.level == ("copy of 56 MB: 40 GB/s", 40.0)
    assert [series.label for series in single.panels["scsa forward, float32"]] == ["eager"]
    several = roofline(module(56, 12.0, 40.0), module(7, 3.0, 90.0), module(56, 12.0, 44.0))
    assert several.level is None
    roof = several.panels["scsa forward, float32"][-1]
    assert (roof.label, roof.joined) == ("copy, measured", True)
    assert roof.points == [(7.0, 90.0), (56.0, 42.0)]
    beside = roofline(module(56, 12.0, 40.0), benchmark("copy", 1.0, {}, gb_per_s=50.0, bytes_moved_at_least=5e7))
    assert beside.panels["scsa forward, float32"][-1].points == [(50.0, 50.0), (56.0, 40.0)]
    without = module(7, 3.0, 90.0)
    del without["extra_info"]["copy_gb_per_s"]
    assert roofline(without).level is None


def test_plots_are_pictures_with_text_and_the_same_each_time(result: dict) -> None:
    pytest.importorskip("matplotlib")
    result["benchmarks"] = result["benchmarks"][:3]
    result["benchmarks"][0]["extra_info"]["model"] = "$resnet$_50"  # no formula
    first, second = plots(result), plots(result)
    assert first == second
    for plot in first:
        assert plot.png.startswith(b"\x89PNG")
        root = ElementTree.fromstring(plot.svg)
        assert root.tag.endswith("svg")
        assert "<dc:date>" not in plot.svg
    assert "$resnet$_50" in first[0].svg


def test_many_groups_have_several_panels() -> None:
    made = [benchmark("native", 1.0, {"eager": 2.0}, shape=[8, width, 7, 7]) for width in range(1, 60)]
    found = report.chart.panels(result_of(made))
    assert [len(panel.groups) for panel in found] == [24, 24, 11]
    assert found[2].title.endswith("(3 of 3)")


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)


def test_the_page_holds_tables_plots_facts_and_warnings(result: dict, written: Path) -> None:
    text = (written / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.tags.count("table") == len(tables(result)) + 6  # its paper's own
    answered = sum(len(drawn) for _, drawn in answers(result))
    assert reader.tags.count("svg") == len(plots(result)) + answered > len(plots(result)) > 0
    assert "Some CPU" in text
    assert "could not be measured" in text


def test_facts_name_machine_versions_commit_and_protocol(result: dict) -> None:
    result["commit_info"]["dirty"] = True
    found = facts(result)
    assert found["machine"] == "Some CPU; threads: 2; native: avx2"
    assert found["versions"] == "torch 2.11.0, fastattn 0.1.0"
    assert found["commit"] == "0123456789ab with changes that are not committed"
    assert found["date"] == "2026-11-21 11:59:07"
    assert found["protocol"].startswith("batch 8; size 224; 5 repeats; float32")
    bare = facts({"benchmarks": [], "fastattn": {"schema": report.SCHEMA}, "machine_info": {"cpu": None}})
    assert "commit" not in bare
    assert bare["machine"].startswith("unknown CPU")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        pytest.param({"warm_up": 2}, "2 calls to warm up", id="calls that warm up"),
        pytest.param({"tf32": "convolutions"}, "TF32 in convolutions", id="TF32"),
        pytest.param({"compiled": "all"}, "torch.compile in every row", id="all compiled"),
        pytest.param({"compiled": "none"}, "without torch.compile", id="none compiled"),
        pytest.param({"compiled": "some"}, "torch.compile in some rows", id="compiled by another version"),
        pytest.param({"{later}": [1, 2]}, "{later} 1, 2", id="unknown"),
        pytest.param({"sizes": None, "repeats": 5}, "5 repeats", id="null"),
        pytest.param({"sizes": [], "repeats": 5}, "5 repeats", id="modules have no size"),
    ],
)
def test_a_protocols_entries_are_readable(entry: dict, text: str) -> None:
    assert facts(bench_result([], protocol=entry))["protocol"].startswith(f"{text}; rivals timed in turns")


def test_facts_name_what_became_of_freed_memory_on_a_cpu(result: dict) -> None:
    assert "freed memory" not in facts(result)
    result["machine_info"]["freed_memory"] = "kept by the process"
    assert facts(result)["freed memory"] == "kept by the process"
    result["fastattn"]["device"] = "cuda"
    assert "freed memory" not in facts(result)


def test_several_results_are_labelled_and_side_by_side(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result["benchmarks"] = result["benchmarks"][:6]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.json").write_text(json.dumps(result))
    (tmp_path / "other.json").write_text(json.dumps(result))
    sources = [str(tmp_path / name) for name in ("a/same.json", "b/same.json", "other.json", "other.json")]
    assert report.main([*sources, "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "### Side by side" in text
    assert text.count("- **machine**: Some CPU") == 1  # of all of them
    for label in ("a/same", "b/same"):
        assert f"### {label}: Backbones with SCSA" in text
        assert (tmp_path / "out" / "plots" / f"{slug(label)}-resnet50-batch-8-224-x-224-scsa-backbones.svg").is_file()
    rows = read((tmp_path / "out" / "csv" / "records.csv").read_text())
    label = f"{tmp_path.name}/other"
    assert list(dict.fromkeys(cells[0] for cells in rows[1:])) == ["a/same", "b/same", label, f"{label} (2)"]


def test_a_readme_has_room_for_one_result_of_a_device(
    result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, readme = tmp_path / "result.json", tmp_path / "README.md"
    path.write_text(json.dumps(result))
    readme.write_text("before")
    assert report.main([str(path), str(path), "--readme", str(readme)]) == 2
    assert "one result of a CPU" in capsys.readouterr().err
    assert readme.read_text() == "before"
