"""Reports of `python -m fastattn bench`: the papers' tables, spreads, hardware, warnings, and what failed."""

import pytest

from fastattn.report import Table, tables, to_markdown, to_text, warnings
from tests.report.cases import bench_result, benchmark, failed, result_of, row


def speedups(made: dict, **over: float) -> dict:
    made["extra_info"]["speedup"] = {name: {"least": 2 * ratio, "median": ratio} for name, ratio in over.items()}
    return made


@pytest.fixture
def result() -> dict:
    plain = {"attention": "none", "parameters": 25_557_032, "note": None}
    first = {"table": "scsa-ablation", "variant": "PCSA first"}
    energy = {"telemetry": {"energy_per_image_j": 0.51}}
    return bench_result(
        [
            speedups(row("eager", 100.0, **plain), compile=0.9),
            speedups(row("compile", 90.0, **plain), eager=1.11),
            speedups(row("eager", 200.0), plain=0.5, native=0.55),
            speedups(row("native", 110.0, quartiles_ms=[100.0, 120.0], **energy), plain=0.91, eager=1.82, compile=1.7),
            failed(row("compile", 1.0), "no C compiler"),
            row("eager", 210.0, **first),
        ]
    )


def by_title(result: dict) -> dict[str, Table]:
    return {table.title: table for table in tables(result)}


def rows_of(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, cells, strict=True)) for cells in table.rows]


def test_a_table_for_each_table_and_a_row_for_each_case(result: dict) -> None:
    found = by_title(result)
    assert list(found)[:3] == [
        "Backbones with SCSA and others (scsa-backbones)",
        "SCSA's ablations (scsa-ablation)",
        "Not measured",
    ]
    plain, scsa = rows_of(found["Backbones with SCSA and others (scsa-backbones)"])
    assert (plain["model"], plain["attention"], plain["batch"], plain["size"]) == ("resnet50", "none", "8", "224")
    assert (plain["M parameters"], scsa["M parameters"], scsa["G multiply-adds"]) == ("25.56", "25.62", "4.10")
    assert (plain["paper's images/s"], scsa["paper's images/s"], scsa["paper"]) == ("2433", "2019", "SCSA, Table 2")
    assert (scsa["paper's M parameters"], scsa["paper's of plain"]) == ("25.62", "0.830")
    assert (plain["eager images/s"], scsa["eager images/s"]) == ("80.0 (4%)", "40.0 (4%)")
    assert (scsa["native images/s"], scsa["compile images/s"]) == ("72.7 (18%!)", "failed")
    assert (plain["native images/s"], plain["native vs eager"]) == ("-", "-")


def test_shares_and_ratios_are_medians_inside_the_rounds(result: dict) -> None:
    plain, scsa = rows_of(by_title(result)["Backbones with SCSA and others (scsa-backbones)"])
    assert (plain["eager of plain"], plain["native of plain"]) == ("1.00", "-")
    assert (plain["compile vs eager"], scsa["compile vs eager"]) == ("1.11×", "-")
    assert (plain["compile of plain"], scsa["compile of plain"]) == ("1.00", "-")
    assert (scsa["eager of plain"], scsa["native of plain"]) == ("0.500", "0.910")
    assert (scsa["native vs eager"], scsa["native vs compile"]) == ("1.82×", "1.70×")
    assert scsa["native J/image"] == "0.510"


def compiled_result() -> dict:
    """SCSA in a network that is compiled too, beside the plain network that is."""
    over = {"plain": 0.9, "plain compiled": 0.8, "eager": 1.8, "compile": 1.5}
    made = [row("eager", 200.0, peak_memory_bytes=5e7), row("native", 110.0)]
    made += [speedups(row("compile", 150.0), **over | {"plain compiled": 0.6})]
    return bench_result([*made, speedups(row("native compiled", 100.0, peak_memory_bytes=2.5e7), **over)])


def test_a_compiled_networks_share_is_that_of_the_compiled_plain_one() -> None:
    table = next(iter(by_title(compiled_result()).values()))
    [scsa] = rows_of(table)
    assert (scsa["compile of plain"], scsa["native compiled of plain"]) == ("0.600", "0.800")
    assert (scsa["native compiled images/s"], scsa["native compiled vs compile"]) == ("80.0 (4%)", "1.50×")
    assert not {"native vs compile", "native compiled vs eager"} & scsa.keys()
    assert (scsa["eager peak MB"], scsa["native compiled peak MB"]) == ("50.0", "25.0")
    assert "native peak MB" not in scsa
    assert any("one measurement" in note and note.startswith("peak MB") for note in table.notes)


def test_columns_of_nothing_are_left_out_and_variants_have_one(result: dict) -> None:
    first, second = list(by_title(result).values())[:2]
    assert "variant" not in first.columns
    assert not any("GB/s" in column or "VOC" in column or "eager J/image" in column for column in first.columns)
    [only] = rows_of(second)
    assert (only["attention"], only["variant"], only["eager images/s"]) == ("scsa", "PCSA first", "38.1 (4%)")


def test_notes_name_protocol_placement_source_and_what_is_counted(result: dict) -> None:
    notes = by_title(result)["Backbones with SCSA and others (scsa-backbones)"].notes
    text = "\n".join(notes)
    assert "as in the papers, counted by torch.utils.flop_counter / 2" in text
    assert "batch 8; size 224; 5 repeats; float32; contiguous; forward; photographs" in text
    assert "scsa in resnet50: after the first convolution of each block" in notes
    assert any(note.startswith("paper's: SCSA (arXiv 2407.05128), Table 2: ImageNet-1K") for note in notes)
    assert "batch 32, mean of 100 repeats" in text
    assert "paper's of plain: derived" in text
    assert "interquartile range" in text
    assert len(notes) == len(set(notes))


def test_what_an_attentions_own_authors_print_has_a_column_of_its_own() -> None:
    facts = {"attention": "eca", "operation": "eca"}
    table = next(iter(by_title(bench_result([row("eager", 100.0, **facts)])).values()))
    [eca] = rows_of(table)
    assert (eca["paper's top-1 %"], eca["its authors' top-1 %"]) == ("77.05", "77.48")
    assert any(note.startswith("its authors', eca in resnet50: github.com/BangguWu/ECANet") for note in table.notes)


def test_notes_say_what_was_measured_once_and_what_an_implementation_is(result: dict) -> None:
    first, second = (" ".join(table.notes) for table in list(by_title(result).values())[:2])
    assert "compile: the whole network compiled" in first
    once = "J/image: of the whole GPU; one measurement"
    assert once in first
    assert once not in second  # it has no such column
    assert "as many calls as fill 5 ms" in first


def test_dtypes_and_formats_have_columns_where_they_differ(result: dict) -> None:
    result["benchmarks"].append(row("eager", 50.0, dtype="bfloat16"))
    found = rows_of(next(iter(by_title(result).values())))
    assert [cells["dtype"] for cells in found] == ["float32", "float32", "bfloat16"]
    assert "format" not in found[0]


def test_modules_go_by_their_shape() -> None:
    facts = {"table": "modules", "model": None, "shape": [8, 64, 56, 56], "parameters": 1234, "multiply_adds": 2.5e6}
    made = bench_result(
        [
            row("eager", 4.0, **facts, gb_per_s=3.0),
            speedups(row("native", 1.0, **facts, gb_per_s=12.0), eager=4.0, copy=0.3),
            row("eager", 4.0, **facts | {"shape": [8, 3136, 96], "attention": "cat", "multiply_adds": None}),
        ]
    )
    table = by_title(made)["Modules alone (modules)"]
    first, second = rows_of(table)
    assert (first["shape"], second["shape"]) == ("(8, 64, 56, 56)", "(8, 3136, 96)")
    assert (first["k parameters"], first["M multiply-adds"], second["M multiply-adds"]) == ("1.23", "2.50", "-")
    assert (first["native vs eager"], first["native GB/s"]) == ("4.00×", "12.0 (4%)")
    assert not {"model", "batch", "size"} & set(table.columns)


def test_failed_rows_are_listed_with_their_reasons(result: dict) -> None:
    case = {"suite": "lga", "operation": "lga", "heads": 6, "contraction": "paper"}
    result["benchmarks"] += [
        failed(benchmark("native", 1.0, {}, **case), "a | b <c>"),
        benchmark("eager", 1.0, {}, **case),
    ]
    found = by_title(result)
    table = found["Not measured"]
    first, second = rows_of(table)
    assert (first["suite"], first["model"], first["attention"]) == ("scsa-backbones", "resnet50", "scsa")
    assert (first["rival"], first["reason"]) == ("compile", "no C compiler")
    assert (second["suite"], second["variant"], second["reason"]) == ("lga", "6 heads, paper contraction", "a | b <c>")
    assert rows_of(found["LGA as a module"])[0]["native ms"] == "failed"
    assert "a \\| b &lt;c>" in to_markdown(table)
    assert "launch" not in table.columns


def test_a_case_that_only_failed_still_has_its_row() -> None:
    table = next(iter(tables(bench_result([failed(row("eager", 1.0), "no memory")]))))
    assert rows_of(table)[0]["eager images/s"] == "failed"


def test_a_row_measured_at_the_second_attempt_is_shown() -> None:
    again = failed(row("eager", 1.0), "no memory")
    table = next(iter(tables(bench_result([row("eager", 100.0), again]))))
    assert rows_of(table)[0]["eager images/s"] == "80.0 (4%)"


def test_rivals_tables_carry_spreads_and_explain_them() -> None:
    made = result_of(
        [
            benchmark("eager", 4.0, {"native": 0.5}, quartiles_ms=[3.98, 4.0]),
            benchmark("native", 2.0, {"eager": 2.0}, quartiles_ms=[1.9, 2.1]),
        ]
    )
    made["benchmarks"][1]["extra_info"]["speedup"]["eager"]["quartiles"] = [1.98, 2.04]
    [table] = tables(made)
    [cells] = rows_of(table)
    assert (cells["eager ms"], cells["native ms"]) == ("4.00 (0.5%)", "2.00 (10%!)")
    assert (cells["native vs eager"], cells["native GB/s"]) == ("2.00× (3%)", "1.25 (10%!)")
    assert any("interquartile" in note for note in table.notes)
    assert max(map(len, to_text(table).splitlines()[3:])) <= 120


def clocked(rival: str, **telemetry: object) -> dict:
    return row(rival, 100.0, telemetry=telemetry)


def test_hardware_has_a_table() -> None:
    seen = {
        "sm_mhz": {"least": 1900.0, "median": 1980.0, "most": 1980.0},
        "memory_mhz": {"least": 2619.0, "median": 2619.0, "most": 2619.0},
        "temperature_c": {"most": 61},
        "power_w": 412.3,
        "energy_per_image_j": 0.5,
        "clock_reductions": ["software power cap"],
        "other_processes": 0,
    }
    made = bench_result([clocked("eager", **seen), clocked("native", unavailable="nvidia-ml-py is missing")])
    gpu, none = rows_of(by_title(made)["Hardware while measuring"])
    assert (gpu["SM MHz"], gpu["memory MHz"], gpu["at most °C"]) == ("1980 (1900 to 1980)", "2619", "61.0")
    assert (gpu["W"], gpu["J/image"], gpu["clock reductions"]) == ("412", "0.500", "software power cap")
    assert (none["not available"], none["SM MHz"]) == ("nvidia-ml-py is missing", "-")
    assert not {"CPU MHz", "other processes"} & set(gpu)


def clock(least: float, most: float) -> dict[str, float]:
    return {"least": least, "median": most, "most": most}


@pytest.mark.parametrize(
    ("benchmarks", "ours", "expected"),
    [
        pytest.param([clocked("eager", sm_mhz=clock(1950, 2000))], {}, [], id="quiet"),
        pytest.param(
            [clocked("eager", sm_mhz=clock(1900, 2000)), clocked("native", sm_mhz=clock(2000, 2000))],
            {},
            ["During 1 of 2 rows the SM clock moved by more than 3%, at most by 5%"],
            id="clock",
        ),
        pytest.param([clocked("eager", cpu_mhz=clock(2000, 3000))], {}, ["CPU clock moved"], id="CPU's clock"),
        pytest.param([clocked("eager", memory_mhz=clock(1, 2))], {}, ["memory clock moved"], id="memory's clock"),
        pytest.param([clocked("eager", other_processes=2)], {}, ["Another process used the GPU during 1"], id="others"),
        pytest.param(
            [row("eager", 100.0), row("native", 100.0, quartiles_ms=[90, 110])],
            {},
            ["1 of 2 rows spread by more than 5% (interquartile range over median), at most 20%"],
            id="spread",
        ),
        pytest.param([row("eager", 100.0)], {"complete": False}, ["cut short"], id="incomplete"),
        pytest.param([failed(row("eager", 1.0), "why")], {}, ["1 row could not be measured"], id="failed"),
        pytest.param([], {}, [], id="nothing"),
    ],
)
def test_warnings(benchmarks: list[dict], ours: dict, expected: list[str]) -> None:
    found = warnings(bench_result(benchmarks, **ours))
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
