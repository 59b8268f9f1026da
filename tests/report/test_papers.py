"""The papers' figures: those of printed.csv, a copy of what the papers print, and no others; what is read of them."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from fastattn.bench.tables import TABLES, Setting
from fastattn.report import papers
from fastattn.report.papers import by_its_authors, paper_tables, papers_own_tables, printed, whose

SSD = {"model": "ssd300_vgg16"}
PLAIN, CFSAM, LGA = {"attention": "none"}, {"attention": "cfsam"}, {"attention": "lga"}
# What the papers' names stand for, where this package's differ by more than capitals.
NAMES: dict[str, dict[str, str | None]] = {
    "ResNet-50": {"model": "resnet50"},
    "ResNet-101": {"model": "resnet101"},
    "RepVGG-A0": {"model": "repvgg_a0"},
    "MobileNetV2-1.0": {"model": "mobilenetv2_100"},
    "Swin-T": {"model": "swin_tiny_patch4_window7_224"},
    "ResNet": PLAIN,
    "MobileNetV2": PLAIN,
    "RepVGG": PLAIN,
    "Swin": PLAIN,
    "ECANet": {"attention": "eca"},
    "SENet": {"attention": "se"},
    "FcaNet": {"attention": "fca"},
    "SANet": {"attention": "sa"},
    "SCSA(Ours)": {"attention": "scsa"},
    "COCOminitrain": {"data": "COCO minitrain"},
    "SCSA-50": {"variant": None},
    "PCSA Prior": {"variant": "PCSA first"},
    "G2(3,7)": {"variant": "G2(3, 7)"},
    "GN Prior": {"variant": "GN before the convolutions"},
    "GN→BN": {"variant": "GN -> BN"},
    "w/o PC": {"variant": "w/o progressive compression"},
    "GN→LN": {"variant": "GN -> LN"},
    "w/ Multi-head + Shuffle": {"variant": "multi-head with channel shuffle"},
    "w/o Normalization in SMSA": {"variant": "w/o normalisation in SMSA"},
    "Shared → Unshared": {"variant": "unshared convolutions"},
    "Scaled: $\\sqrt{C} \\rightarrow \\sqrt{H * W}$": {"variant": "scale sqrt(HW)"},
    "SSD300": SSD | PLAIN,
    "SSD300-SE": SSD | {"attention": "se"},
    "SSD300-CFAM": SSD | {"attention": "cfam"},
    "SSD300-MViT": SSD | {"attention": "mobilevit"},
    "Ours": SSD | CFSAM,
    "RCNN-FPN": {"model": "R-CNN with FPN"},
    "EfficientDet": {"model": "EfficientDet-D0"},
    "SSD300 (Baseline)": SSD | PLAIN,
    "SSD300+LEF": SSD | CFSAM | {"variant": "LFE"},
    "SSD300+LEF+GFE": CFSAM | {"variant": "LFE + GFE"},
    "SSD300+CFSAM(Ours)": CFSAM | {"variant": None},
    "+CFSAM(Shallow)": CFSAM | {"variant": "shallow levels"},
    "+CFSAM(Deep)": CFSAM | {"variant": "deep levels"},
    "+CFSAM(All)": SSD | CFSAM | {"variant": None},
    "LGA (ours)": LGA,
    "LGA (Ours)": LGA,
    "LGA(ours)": LGA,
    "LA (ours)": LGA | {"variant": "LA"},
    "GA (ours)": LGA | {"variant": "GA"},
    "YOLOv8": {},
}


def copied() -> dict[tuple[str, str], list[tuple[list[str], list[float]]]]:
    """(paper, table) -> its rows, as (labels, figures) in the paper's order."""
    found: dict[tuple[str, str], list[tuple[list[str], list[float]]]] = {}
    with (Path(__file__).parent / "printed.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            labels = row["row"].replace(";", ",").split(" / ")
            figures = [float(figure) for figure in row["figures"].split()]
            found.setdefault((row["paper"].upper(), f"Table {row['table']}"), []).append((labels, figures))
    return found


PRINTED = copied()


def test_every_table_is_there_and_no_other() -> None:
    assert {(paper.paper, paper.name) for paper in paper_tables()} == set(PRINTED)
    assert Counter(paper.paper for paper in paper_tables()) == {"SCSA": 6, "CFSAM": 6, "LGA": 7}


@pytest.mark.parametrize("paper", paper_tables(), ids=lambda paper: f"{paper.paper} {paper.name}")
def test_a_table_has_the_figures_that_its_paper_prints(paper: papers.PaperTable) -> None:
    expected = PRINTED[paper.paper, paper.name]
    assert [[v for v in row.values() if isinstance(v, int | float)] for row in paper.rows] == [f for _, f in expected]
    for row, (labels, _) in zip(paper.rows, expected, strict=True):
        for label in labels:
            known = NAMES.get(label)
            verbatim = label.lower() in [str(value).lower() for value in row.values()]
            assert verbatim if known is None else known.items() <= row.items(), f"{label}: {row}"


def test_a_rows_figures_are_joined_from_the_papers_tables_and_name_them() -> None:
    cfsam = printed("cfsam-ssd300", "ssd300_vgg16", "cfsam")
    assert {name: value for name, value in cfsam.items() if name != "of_plain"} == {
        "voc_map": 78.6,
        "coco_ap50": 52.1,
        "images_per_s": 57,
        "multiply_adds_g": 45.22,
        "parameters_m": 45.16,
    }
    assert printed("cfsam-ssd300", "ssd300_vgg16", "none")["coco_ap50"] == 41.2  # 43.1 is the abstract's alone
    assert whose("cfsam-ssd300", "ssd300_vgg16", "cfsam") == "CFSAM, Table 1, Table 3, Table 4"
    ablation = printed("scsa-ablation", "resnet50", "scsa", "w/o SMSA")
    assert ablation == {"images_per_s": 2217, "top1": 77.21, "of_plain": 2217 / 2433}
    assert whose("scsa-ablation", "resnet50", "scsa", "w/o SMSA") == "SCSA, Table 1"
    assert printed("scsa-backbones", "resnet50", "scsa", "w/o SMSA") == printed("modules", None, "scsa") == {}
    assert whose("modules", None, "scsa") == "-"


@pytest.mark.parametrize(
    ("model", "share"), [("resnet50", 0.830), ("mobilenetv2_100", 0.411), ("swin_tiny_patch4_window7_224", 0.863)]
)
def test_shares_follow_from_the_papers_own_throughputs(model: str, share: float) -> None:
    assert printed("scsa-backbones", model, "scsa")["of_plain"] == pytest.approx(share, abs=5e-4)
    assert "of_plain" not in printed("scsa-backbones", model, "none")


def test_what_an_attentions_authors_print_is_none_of_the_papers_figures() -> None:
    own = by_its_authors("resnet50", "eca")
    assert own is not None
    assert own["top1"] == 77.48
    eca, scsa = (printed("scsa-backbones", "resnet50", name)["top1"] for name in ("eca", "scsa"))
    assert (eca, scsa) == (77.05, 77.49)
    assert by_its_authors("resnet50", "scsa") is None


def test_rows_stand_beside_rows_that_are_measured() -> None:
    for name, rows in TABLES.items():
        measured = {(row.model, row.attention, row.variant) for row in rows(Setting())}
        for paper in paper_tables():
            if name in paper.beside and name != "lga-backbones":  # whose backbones are others than the paper's
                known = [(row["model"], row["attention"], row.get("variant")) for row in paper.rows]
                assert any(row in measured for row in known), f"{paper.name} beside {name}"
    assert {name for paper in paper_tables() for name in paper.beside} <= TABLES.keys()


def test_a_papers_tables_are_shown_whole_with_whose_they_are() -> None:
    shown = papers_own_tables(["scsa-backbones", "modules"])
    assert [table.title.partition(":")[0] for table in shown] == [f"SCSA's Table {place}" for place in range(1, 7)]
    faster = shown[2]
    assert faster.columns[:6] == ("detector", "model", "attention", "M parameters", "G multiply-adds", "AP")
    assert len(faster.rows) == 36
    assert faster.notes[0].startswith("SCSA (arXiv 2407.05128), Table 3: MSCOCO val")
    assert shown[0].rows[0][2] == "-"
    assert "batch 32, mean of 100 repeats" in shown[0].notes[0]
    assert papers_own_tables(["modules"]) == []
