"""The HTML page: its structure, and that it asks nothing of the network."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from fastattn.report.page import page, value
from fastattn.report.table import Table
from tests.report.page_cases import Drawn, realistic

VOID = ("meta", "link", "br", "hr", "img", "input", "col", "wbr")


@pytest.fixture(scope="module")
def document() -> str:
    return realistic()


@dataclass
class Outline(HTMLParser):
    """What a document is made of; an AssertionError where its tags do not match."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def every(self, name: str) -> list[str]:
        """The values of an attribute."""
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def outline(document: str) -> Outline:
    found = Outline()
    found.feed(document)
    found.close()
    assert found.open == []
    return found


def test_the_document_is_well_formed_and_its_headings_are_in_order(document: str) -> None:
    found = outline(document)
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert document.startswith("<!DOCTYPE html>")
    assert ("html", {"lang": "en"}) in found.tags
    assert [attrs["content"] for tag, attrs in found.tags if attrs.get("name") == "viewport"] == [
        "width=device-width, initial-scale=1"
    ]


def test_tables_say_what_their_cells_belong_to(document: str) -> None:
    found = outline(document)
    assert sum(tag == "caption" for tag, _ in found.tags) == 2
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in found.tags if tag == "th")
    columns = sum(attrs.get("scope") == "col" for tag, attrs in found.tags)
    assert sum(tag == "button" for tag, _ in found.tags) == columns == 3 + 11


def test_the_plots_ids_do_not_clash_and_every_reference_finds_its_own(document: str) -> None:
    found = outline(document)
    ids = found.every("id")
    assert len(ids) == len(set(ids))
    references = [href[1:] for href in found.every("href") if href.startswith("#")]
    clips = re.findall(r"url\(#([^)]+)\)", document)
    assert any(name.startswith("plot-2-DejaVuSans") for name in references)
    assert any(name.startswith("plot-1-") for name in clips)
    assert {*references, *clips, *found.every("aria-labelledby")} <= set(ids)


def test_the_document_names_no_other_place(document: str) -> None:
    found = outline(document)
    assert "http" not in document.replace('http-equiv="Content-Security-Policy"', "")
    assert "@import" not in document
    assert not re.search(r"url\((?!#)", document)
    assert found.every("src") == []
    assert all(href.startswith(("#", "data:")) for href in found.every("href"))


def test_a_plots_references_to_other_files_are_dropped() -> None:
    svg = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 1 1">
    <image xlink:href="https://example.org/x.png"/><image xlink:href="data:image/png;base64,AA=="/></svg>"""
    found = outline(page("Page", {}, [], [], [Drawn("plot", svg)]))
    assert [attrs for tag, attrs in found.tags if tag == "image"] == [{}, {"href": "data:image/png;base64,AA=="}]


def test_a_plots_styles_stay_inside_it(document: str) -> None:
    styles = re.findall(r"<style[^>]*>([^<]*)</style>", document)[1:]
    assert [style.strip().partition("{")[0].strip() for style in styles] == ["#plot-1-svg *", "#plot-2-svg *"]


def test_text_is_escaped_wherever_it_comes_from() -> None:
    evil = """<script>alert("x") & 'y'</script>"""
    table = Table(evil, (evil, "b"), [(evil, "<b>")], [evil])
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><text>&lt;script&gt; &amp;</text></svg>'
    found = outline(page(evil, {evil: evil}, [evil], [table], [Drawn(evil, svg)]))
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not any(tag == "b" for tag, _ in found.tags)
    # title, h1, fact (2), warning, contents (2), plot, table, caption, column, cell, note
    assert found.text.count(evil) == 13
    assert evil in found.every("aria-label")


def test_a_page_of_nothing_is_a_page() -> None:
    found = outline(page("Nothing", {}, [], [], []))
    assert "Nothing" in found.text
    assert not {"table", "figure", "dl", "h2"} & {tag for tag, _ in found.tags}


def test_a_table_without_rows_keeps_its_columns() -> None:
    found = outline(page("Page", {}, [], [Table("Empty", ("a", "b"), [])], []))
    assert sum(tag == "button" for tag, _ in found.tags) == 2


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        pytest.param("3.73 (2%)", 3.73, id="with its spread"),
        pytest.param("11.5×", 11.5, id="a ratio"),
        pytest.param("≥ 4", 4.0, id="a bound"),
        pytest.param("-0.25", -0.25, id="negative"),
        pytest.param("−0.25", -0.25, id="negative with a minus sign"),
        pytest.param("1.5e-07", 1.5e-7, id="with an exponent"),
        pytest.param("16.8 (missed)", 16.8, id="with a remark"),
        pytest.param("97%", 97.0, id="a share"),
        pytest.param("-", None, id="missing"),
        pytest.param("(8, 64)", None, id="a shape"),
        pytest.param("2026-11-21", None, id="a date"),
        pytest.param("3x3", None, id="a name that begins with a digit"),
    ],
)
def test_the_number_of_a_cell(cell: str, number: float | None) -> None:
    assert value(cell) == number
