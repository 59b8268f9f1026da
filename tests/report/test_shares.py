"""The first screen of a report: what a table of networks says, in a sentence and in pictures."""

from pathlib import Path

import pytest

from fastattn.report import shares, write_report
from fastattn.report.chart import PAPERS, rivals_of
from tests.report.cases import bench_result, row


def with_shares(rival: str, median_ms: float, share: float | None, /, **facts) -> dict:
    """A row that keeps so much of its like of a plain network."""
    made = row(rival, median_ms, **facts)
    over = "plain compiled" if "compile" in rival else "plain"
    made["extra_info"]["speedup"] = {over: {"least": 0.1, "median": share}} if share else {}
    return made


@pytest.fixture
def result() -> dict:
    small = {"model": "mobilenetv2_100"}
    return bench_result(
        [
            row("eager", 100.0, attention="none"),
            with_shares("eager", 105.0, 0.95, attention="se"),
            with_shares("eager", 120.0, 0.85),
            with_shares("compile", 120.0, 0.8),
            with_shares("native", 102.0, 0.97),
            with_shares("native compiled", 90.0, 0.99),
            with_shares("native", 102.0, 0.5, variant="w/o SMSA"),
            with_shares("native", 50.0, 0.9, **small),
            with_shares("native", 60.0, 0.92, model="convnext_tiny"),  # which no paper has
        ]
    )


def test_a_table_says_what_the_fast_attentions_keep_and_what_their_paper_prints(result: dict) -> None:
    [answer] = shares.shares(result)
    assert answer.sentence == (
        "Of the plain network's images per second scsa keeps, in resnet50: 0.850 eager, 0.800 compiled, 0.970 native, "
        "0.990 native and compiled (its paper: 0.830); in mobilenetv2_100: 0.900 native (its paper: 0.411); "
        "in convnext_tiny: 0.920 native."
    )


def test_each_network_has_a_picture_of_all_attentions_the_papers_share_last(result: dict) -> None:
    first, second, _ = shares.shares(result)[0].panels
    assert first.title == "resnet50, batch 8, 224 x 224: share of the plain network"
    assert list(first.groups) == ["se", "scsa", "scsa w/o SMSA"]
    assert rivals_of(first) == ["eager", "compile", "native", "native compiled", PAPERS]
    assert first.groups["se"] == {"eager": 0.95, PAPERS: 2077 / 2433}
    assert first.groups["scsa w/o SMSA"] == {"native": 0.5}  # the paper has it in another table
    assert second.groups == {"scsa": {"native": 0.9, PAPERS: 2751 / 6693}}


def test_a_result_without_shares_of_its_own_attentions_says_nothing() -> None:
    assert shares.shares(bench_result([row("eager", 100.0), with_shares("eager", 90.0, 0.9, attention="se")])) == []
    modules = row("native", 1.0, table="modules", model=None, shape=[8, 64, 56, 56])
    assert shares.shares(bench_result([modules])) == []


def test_a_report_opens_with_it_and_ends_with_how_it_was_measured(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report({"one": result}, tmp_path)
    name = "plots/shares-scsa-backbones-resnet50-batch-8-224-x-224.png"
    assert (tmp_path / name).is_file()
    for file, *parts in (
        ("report.md", f"]({name})", "### Backbones with SCSA", "## What the papers print", "## How it was measured"),
        ("report.tex", f"{{{name}}}", "caption{Backbones with SCSA", "caption{SCSA's Table 1", "item[machine]"),
        ("report.html", 'id="answer-1-1"', "<table>", 'id="papers"', 'id="facts"'),
    ):
        text = (tmp_path / file).read_text()
        places = [text.find(part) for part in ("Of the plain network", *parts)]
        assert -1 < places[0] < places[1] < places[2] < places[3] < places[4], f"{file}: {places}"


def test_settings_that_several_results_share_stand_once(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = bench_result(result["benchmarks"][:2])
    other["machine_info"] = other["machine_info"] | {"threads": 16}
    write_report({"a": result, "b": other}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.count("- **versions**: ") == 1
    assert [line for line in text.splitlines() if "machine**" in line] == [
        "- **a, machine**: Some CPU; threads: 2; native: avx2",
        "- **b, machine**: Some CPU; threads: 16; native: avx2",
    ]
    assert "a: Of the plain network's images per second" in text
