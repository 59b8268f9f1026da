"""Several results side by side: which cases meet, what their figures and ratios are, and what makes them hard to
compare."""

import pytest

from fastattn.report.comparison import comparison_tables, differences
from fastattn.report.table import Table
from tests.report.cases import DESCRIBED


def record(rival: str, ms: float | None, **facts) -> dict:
    usual = {"suite": "module", "work": "forward", "dtype": "float32", "format": "contiguous", "shape": [8, 64, 56, 56]}
    timed = {} if ms is None else {"least_ms": ms, "median_ms": 1.25 * ms, "speedup": {}}
    rate = {"images_per_s": 8e3 / ms} if ms and "model" in facts else {}
    return {"name": rival, "extra_info": usual | timed | rate | {"rival": rival} | facts}


def result(*benchmarks: dict, cpu: str = "Some CPU", threads: int = 2, torch: str = "2.15.0", **ours) -> dict:
    versions = {"torch": torch, "fastattn": "0.1"}
    return {
        "machine_info": {"cpu": cpu, "gpu": None, "threads": threads, "isa": "avx2", "versions": versions},
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "benchmarks": list(benchmarks),
        "fastattn": DESCRIBED | {"selection": "default"} | ours,
    }


def on_gpu(*benchmarks: dict, gpu: str = "Some GPU") -> dict:
    found = result(*benchmarks, device="cuda")
    found["machine_info"]["gpu"] = gpu
    return found


def rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def only(results: dict[str, dict]) -> Table:
    (table,) = comparison_tables(results)
    return table


def test_each_result_has_its_time_and_its_ratio_to_the_first() -> None:
    table = only(
        {
            "old": result(record("eager", 4.0), record("native", 2.0)),
            "new": result(record("eager", 4.0), record("native", 0.5)),
            "newer": result(record("eager", 5.0), record("native", 0.25)),
        }
    )
    assert table.title == "Side by side: SCSA as a module"
    assert table.columns == ("rival", "old ms", "new ms", "newer ms", "new vs old", "newer vs old")
    assert table.rows == [
        ("eager", "4.00", "4.00", "5.00", "1.00×", "0.800×"),
        ("native", "2.00", "0.500", "0.250", "4.00×", "8.00×"),
    ]


def test_the_spread_is_the_interquartile_range_over_the_median() -> None:
    quiet, noisy = (record("native", 4.0, quartiles_ms=quartiles) for quartiles in ([4.9, 5.1], [4.5, 5.5]))
    table = only({"a": result(quiet), "b": result(noisy)})
    assert (rows(table)[0]["a ms"], rows(table)[0]["b ms"]) == ("4.00 (4%)", "4.00 (20%!)")


def test_a_ratios_spread_follows_from_both_results() -> None:
    three, four = (record("native", 4.0, quartiles_ms=[5.0, 5.0 * (1 + share)]) for share in (0.06, 0.08))
    unknown = record("native", 2.0)
    table = only({"a": result(three), "b": result(four), "c": result(unknown)})
    assert (rows(table)[0]["b vs a"], rows(table)[0]["c vs a"]) == ("1.00× (10%!)", "2.00×")
    assert any("root of the sum of its two results' squared spreads" in note for note in table.notes)
    assert not any("squared spreads" in note for note in only({"a": result(unknown), "b": result(unknown)}).notes)


def test_what_is_the_same_everywhere_is_said_once_and_has_no_column() -> None:
    some = result(record("native", 1.0), record("native", 2.0, dtype="bfloat16"))
    table = only({"a": some, "b": some})
    assert table.columns[0] == "dtype"
    assert [row["dtype"] for row in rows(table)] == ["float32", "bfloat16"]
    assert "In all rows: shape (8, 64, 56, 56), format contiguous, work forward, rival native." in table.notes


def test_a_single_case_is_named_in_full() -> None:
    table = only({"a": result(record("native", 1.0)), "b": result(record("native", 2.0))})
    assert table.columns[:5] == ("shape", "dtype", "format", "work", "rival")


DIFFERENT = {
    "model": ("resnet18", "resnet50"),
    "attention": ("se", "eca"),
    "variant": (None, "PCSA first"),
    "operation": ("lga", "cat"),
    "shape": ([8, 3, 224, 224], [16, 3, 224, 224]),
    "heads": (4, 8),
    "parts": (1, 2),
    "layers": (2, 5),
    "concepts": (8, 64),
    "contraction": ("paper", "released"),
    "ablation": ("LFE", "LFE + GFE"),
    "levels": (["512@38"], ["512@38", "1024@19"]),
    "dtype": ("float32", "bfloat16"),
    "format": ("contiguous", "channels_last"),
    "work": ("forward", "forward + backward"),
}


@pytest.mark.parametrize(("name", "values"), DIFFERENT.items(), ids=DIFFERENT)
def test_cases_that_differ_in_one_thing_are_two_rows(name: str, values: tuple) -> None:
    some = result(*(record("native", ms, **{name: value}) for ms, value in zip((1.0, 2.0), values, strict=True)))
    table = only({"a": some, "b": some})
    assert [row["a ms"] for row in rows(table)] == ["1.00", "2.00"]
    assert table.columns[0] == name


def test_a_row_of_one_result_alone_stays() -> None:
    table = only(
        {
            "a": result(record("eager", 4.0), record("native", 2.0)),
            "b": result(record("eager", 2.0), record("compile", 3.0)),
        }
    )
    assert [tuple(row.values()) for row in rows(table)] == [
        ("eager", "4.00", "2.00", "2.00×"),
        ("native", "2.00", "-", "-"),
        ("compile", "-", "3.00", "-"),
    ]


@pytest.mark.parametrize(
    ("labels", "row"),
    [(("good", "bad"), ("native", "2.00", "failed", "-")), (("bad", "good"), ("native", "failed", "2.00", "-"))],
    ids=["beside the first", "the first itself"],
)
def test_a_failed_row_is_shown_with_its_reason(labels: tuple[str, str], row: tuple[str, ...]) -> None:
    results = {
        "good": result(record("eager", 4.0), record("native", 2.0)),
        "bad": result(record("eager", 4.0), record("native", None, failed="out of memory")),
    }
    table = only({label: results[label] for label in labels})
    assert table.rows[1] == row
    assert "bad: 1 row failed: out of memory" in table.notes


@pytest.mark.parametrize("later", ["failed", "measured"])
def test_a_measured_row_goes_before_a_failed_one_of_the_same_case(later: str) -> None:
    twice = [record("native", 2.0), record("native", None, failed="interrupted")]
    some = result(*(twice if later == "failed" else twice[::-1]))
    assert only({"a": some, "b": some}).rows[0][-3:] == ("2.00", "2.00", "1.00×")


def test_suites_that_only_one_result_has_give_no_table() -> None:
    some = result(record("native", 1.0), record("native", 1.0, suite="lga"))
    other = result(record("native", 1.0, suite="lga"), record("native", 1.0, suite="acp"))
    assert [table.title for table in comparison_tables({"a": some, "b": other})] == ["Side by side: LGA as a module"]
    assert comparison_tables({"a": some}) == []
    assert comparison_tables({}) == []


def test_the_first_result_that_has_a_suite_is_what_the_others_are_compared_with() -> None:
    module, lga = record("native", 1.0), record("native", 1.0, suite="lga")
    found = comparison_tables({"a": result(module), "b": result(lga, module), "c": result(lga)})
    assert [table.columns[5:] for table in found] == [
        ("a ms", "b ms", "b vs a"),
        ("b ms", "c ms", "c vs b"),
    ]


def test_on_a_gpu_the_median_counts_in_microseconds() -> None:
    a = [record("triton", 1.0, launch=launch) for launch in ("launches", "graph")]
    b = [record("triton", 1.0, launch=launch, median_ms=0.25) for launch in ("launches", "graph")]
    table = only({"a": on_gpu(*a), "b": on_gpu(*b)})
    assert table.columns == ("launch", "a µs", "b µs", "b vs a")
    assert table.rows == [("launches", "1250", "250", "5.00×"), ("graph", "1250", "250", "5.00×")]
    assert "by the median of the interleaved rounds" in table.notes[0]


def test_models_are_compared_by_images_per_second() -> None:
    facts = {"suite": "model", "model": "resnet50", "shape": [8, 3, 224, 224]}
    table = only({"a": result(record("plain", 100.0, **facts)), "b": result(record("plain", 50.0, **facts))})
    assert table.columns[-3:] == ("a images/s", "b images/s", "b vs a")
    assert table.rows[0][-3:] == ("80.0", "160", "2.00×")


def test_throughput_has_a_table_for_each_of_its_own_by_the_median() -> None:
    usual = {"suite": "throughput", "attention": "scsa", "variant": None}
    backbone = usual | {"table": "scsa-backbones", "model": "resnet50", "shape": [8, 3, 224, 224]}
    module = usual | {"table": "modules", "model": None}
    slow, fast = ({"median_ms": 8e3 / rate, "images_per_s": rate} for rate in (80.0, 160.0))
    a = result(record("native", 1.0, **backbone, **slow), record("native", 1.0, **module, **fast))
    b = result(record("native", 1.0, **backbone, **fast), record("native", 1.0, **module, **slow))
    backbones, modules = comparison_tables({"a": a, "b": b})
    assert backbones.title == "Side by side: Backbones with SCSA and others"
    assert modules.title == "Side by side: Modules alone"
    assert backbones.columns[-3:] == modules.columns[-3:] == ("a images/s", "b images/s", "b vs a")
    assert backbones.rows[0][-3:] == ("80.0", "160", "2.00×")
    assert modules.rows[0][-3:] == ("160", "80.0", "0.500×")


def test_a_cpus_and_a_gpus_fast_rows_are_one_case_of_throughput() -> None:
    facts = {"suite": "throughput", "table": "scsa-backbones", "attention": "scsa", "model": "resnet50"}
    cpu = result(record("eager", 8.0, **facts), record("native", 4.0, **facts), record("native", 1.0))
    gpu = on_gpu(record("eager", 2.0, **facts), record("triton", 1.0, **facts), record("triton", 1.0))
    module, table = comparison_tables({"cpu": cpu, "gpu": gpu})
    assert [row["rival"] for row in rows(table)] == ["eager", "fastattn"]
    assert [row["gpu vs cpu"] for row in rows(table)] == ["4.00×", "4.00×"]
    assert any(note.startswith("fastattn: its native backend on a CPU") for note in table.notes)
    assert [row["rival"] for row in rows(module)] == ["native", "triton"]
    alike = comparison_tables({"a": cpu, "b": cpu})[1]
    assert [row["rival"] for row in rows(alike)] == ["eager", "native"]
    assert not any("Triton backend" in note for note in alike.notes)


def test_the_notes_name_machine_versions_and_commit_of_each() -> None:
    changed = result(record("native", 1.0))
    changed["commit_info"]["dirty"] = True
    notes = only({"a": result(record("native", 1.0)), "b": changed}).notes
    known = "Some CPU; threads: 2; native: avx2; torch 2.15.0, fastattn 0.1; commit 0123456789ab"
    assert {f"a: {known}.", f"b: {known} with changes that are not committed."} <= set(notes)


def test_a_result_that_says_nothing_of_its_machine_is_unknown() -> None:
    bare = {"benchmarks": [record("native", 1.0)], "fastattn": DESCRIBED}
    notes = only({"a": bare, "b": bare}).notes
    assert "a: unknown CPU; threads: ?; native: ?; unknown versions; commit unknown." in notes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cpu": "Other CPU"}, "Not the same device: a: Some CPU; b: Other CPU."),
        ({"threads": 4}, "Not the same number of threads: a: 2; b: 4."),
        ({"torch": "2.11.0"}, "Not the same torch version: a: 2.15.0; b: 2.11.0."),
    ],
    ids=["another device", "other threads", "another version"],
)
def test_what_makes_results_hard_to_compare_is_said(changes: dict, sentence: str) -> None:
    results = {"a": result(record("native", 1.0)), "b": result(record("native", 1.0), **changes)}
    assert differences(results) == [sentence]
    assert sentence in only(results).notes


def test_a_gpus_result_differs_from_a_cpus_by_its_device() -> None:
    found = differences({"a": result(), "b": on_gpu()})
    assert "Not the same device: a: Some CPU; b: Some GPU." in found
    assert differences({"a": on_gpu(), "b": on_gpu()}) == []
