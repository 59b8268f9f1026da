"""The HTML page: its structure, that it asks nothing of the network, and how it behaves in a real browser."""

import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fastattn.report.page import page, value
from fastattn.report.table import Table

VOID = ("meta", "link", "br", "hr", "img", "input", "col", "wbr")
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


@dataclass(frozen=True)
class Drawn:
    title: str
    svg: str


def draw(title: str) -> Drawn:
    """A bar chart of matplotlib's, with clipping and glyphs that every figure calls by the same ids."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axis = figure.subplots()
    names = ["none", "SE", "ECA", "CBAM", "CA", "SCSA eager", "SCSA compiled", "SCSA fast"]
    bars = axis.barh(names, [24.3, 23.9, 23.6, 18.2, 20.4, 20.1, 21.7, 23.6], color="#c1501f")
    axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axis.plot([24.3, 24.3], [-0.5, 7.5], linestyle=":", color="#888888")
    axis.set_title(title, loc="left", fontsize=10)
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return Drawn(title, stream.getvalue())


CELLS = ["3.73 (2%)", "11.5×", "failed: out of memory", "≥ 4", "-", "16.8 (missed)", "0.95", "100"]
RISING = ["0.95", "3.73 (2%)", "≥ 4", "11.5×", "16.8 (missed)", "100", "failed: out of memory", "-"]
FALLING = ["100", "16.8 (missed)", "11.5×", "≥ 4", "3.73 (2%)", "0.95", "failed: out of memory", "-"]
NAMES = ["resnet50", "resnet18", "Swin", "resnet101", "-", "mobilenetv2_100", "élan", "(8, 64, 56, 56)"]
NAMES_RISING = ["(8, 64, 56, 56)", "mobilenetv2_100", "resnet18", "resnet50", "resnet101", "Swin", "élan", "-"]
TIES = ["1", "2", "1", "2", "1", "2", "1", "2"]


def sortable() -> Table:
    rows = list(zip(NAMES, CELLS, TIES, strict=True))
    return Table("What cells look like", ("model", "measured", "levels"), rows, ["-: not measured."])


def throughput() -> Table:
    """As wide and as long as the backbones' table is."""
    columns = ("model", "attention", "params (M)", "multiply-adds (G)", "paper's top-1 (%)")
    columns += tuple(f"{name} images/s" for name in ("eager", "compile", "native"))
    columns += ("native vs eager", "native vs compile", "where it is placed")
    rows = []
    for place in range(40):
        rate = 24.3 - 0.37 * place
        speeds = (f"{rate:.1f} (2%)", f"{1.1 * rate:.1f} (6%, noisy)", f"{1.2 * rate:.1f} (1%)", "1.20×", "1.09×")
        model = f"{('resnet', 'swin_tiny_patch4_window7_224-')[place % 2]}{18 + place}"
        name, paper = ("SE", "ECA", "CBAM")[place % 3], "-" if place % 4 else "77.5"
        rows.append((model, name, "28.07", "4.13", paper, *speeds, "at the output of each block, before the addition"))
    return Table("scsa-backbones", columns, rows, ["images/s: by the median, with its spread.", "A second note."])


def realistic() -> str:
    facts = {
        "machine": "Intel(R) Xeon(R) Processor; threads: 2; native: avx512",
        "versions": "torch 2.15.0, triton 3.9.0, timm 1.0.31, fastattn 0.1.0",
        "commit": "73885214e74361cbf952d77307e9a193dfcaeed6",
        "protocol": "224 x 224, batch 8, 5 repeats, float32, contiguous, photographs; rivals timed in turns",
    }
    warnings = ["The clocks moved by 4.1% while scsa-backbones ran."]
    plots = [draw("Throughput by attention"), draw("Scaling with the batch")]
    return page("Measured results", facts, warnings, [sortable(), throughput()], plots)


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


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The Chromium that FASTATTN_BROWSER names, or the first on PATH; skip without one, fail where it was named."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    named = os.environ.get("FASTATTN_BROWSER")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None and named:
        pytest.fail(f"FASTATTN_BROWSER: {named} cannot be run")
    if path is None:
        pytest.skip("no Chromium: set FASTATTN_BROWSER, or put chromium or google-chrome on PATH")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(document: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(document, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(browser, address: str, request: pytest.FixtureRequest) -> Iterator:
    """The page in a window; whatever it complains of or asks for fails the test."""
    context = browser.new_context(**{"viewport": DESKTOP} | getattr(request, "param", {}))
    view = context.new_page()
    trouble: list[str] = []
    view.on("console", lambda message: trouble.append(f"console: {message.text}"))
    view.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    view.on("request", lambda asked: asked.url == address or trouble.append(f"request: {asked.url}"))
    view.goto(address)
    yield view
    context.close()
    assert [line for line in trouble if not line.startswith("request: data:")] == []


def column(view, place: int) -> list[str]:
    """A column of the first table, from top to bottom."""
    return view.locator(f"#table-1 tbody tr > :nth-child({place + 1})").all_inner_texts()


def directions(view) -> list[str | None]:
    """How the first table's headers say it is sorted."""
    return [header.get_attribute("aria-sort") for header in view.locator("#table-1 thead th").all()]


def test_clicks_sort_numbers_up_down_and_back_with_what_is_missing_last(opened) -> None:
    button = opened.locator("#table-1 thead button").nth(1)
    assert (column(opened, 1), directions(opened)) == (CELLS, [None, None, None])
    button.click()
    assert (column(opened, 1), directions(opened)) == (RISING, [None, "ascending", None])
    button.click()
    assert (column(opened, 1), directions(opened)) == (FALLING, [None, "descending", None])
    button.click()
    assert (column(opened, 1), directions(opened)) == (CELLS, [None, None, None])


def test_the_keyboard_sorts_text_by_its_numbers_too(opened) -> None:
    button = opened.locator("#table-1 thead button").first
    button.focus()
    opened.keyboard.press("Enter")
    assert (column(opened, 0), directions(opened)) == (NAMES_RISING, ["ascending", None, None])
    opened.keyboard.press("Space")
    assert column(opened, 0) == [*NAMES_RISING[-2::-1], "-"]
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    assert (column(opened, 1), directions(opened)) == (RISING, [None, "ascending", None])


def test_equal_cells_keep_the_order_that_the_rows_had(opened) -> None:
    opened.locator("#table-1 thead button").nth(1).click()
    button = opened.locator("#table-1 thead button").nth(2)
    button.click()
    assert column(opened, 0) == NAMES[0::2] + NAMES[1::2]
    button.click()
    assert column(opened, 0) == NAMES[1::2] + NAMES[0::2]


def test_tables_sort_on_their_own(opened) -> None:
    opened.locator("#table-2 thead button").nth(5).click()
    assert column(opened, 0) == NAMES
    rates = opened.locator("#table-2 tbody tr > :nth-child(6)").all_inner_texts()
    assert rates[0] == "9.9 (2%)"


FITS = "document.documentElement.scrollWidth <= innerWidth"
SIZES = """() => [...document.querySelectorAll("body *")]
    .filter((e) => !e.closest("svg, script, .hidden"))
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => parseFloat(getComputedStyle(e).fontSize))"""


@pytest.mark.parametrize(
    "opened", [pytest.param({"viewport": PHONE, "is_mobile": True, "has_touch": True}, id="a phone")], indirect=True
)
def test_a_phone_shows_it_without_scrolling_sideways_in_letters_that_can_be_read(opened) -> None:
    assert opened.evaluate(FITS)
    assert opened.evaluate("innerWidth") == PHONE["width"]
    assert min(opened.evaluate(SIZES)) >= 13
    opened.locator("#table-1 thead button").nth(1).tap()
    assert column(opened, 1) == RISING


@pytest.mark.parametrize("opened", [pytest.param({"viewport": PHONE}, id="a narrow window")], indirect=True)
def test_a_wide_table_scrolls_in_its_own_place_past_its_first_column(opened) -> None:
    box = opened.locator("#table-2 .scroll")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.evaluate("e => e.scrollLeft = 300")
    first, second = (opened.locator(f"#table-2 tbody tr:first-child > :nth-child({i})") for i in (1, 2))
    left = box.bounding_box()["x"]
    assert abs(first.bounding_box()["x"] - left) <= 2
    assert second.bounding_box()["x"] < left
    assert first.bounding_box()["width"] <= 0.45 * PHONE["width"]


CONTRASTS = """() => {
    const light = (color) => {
        const parts = color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
        const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (e) => {
        const color = getComputedStyle(e).backgroundColor;
        return color === "rgba(0, 0, 0, 0)" ? ground(e.parentElement) : color;
    };
    return ["h1", "a", "dt", "dd", ".warnings li", "thead button", "tbody tr:nth-child(2) th", "td.failed", ".notes p"]
        .map((name) => document.querySelector(name))
        .map((e) => [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a))
        .map(([bright, dark]) => (bright + 0.05) / (dark + 0.05));
}"""


@pytest.mark.parametrize(
    "opened",
    [pytest.param({"color_scheme": scheme}, id=scheme) for scheme in ("light", "dark")],
    indirect=True,
)
def test_text_stands_out_from_its_ground(opened, request: pytest.FixtureRequest) -> None:
    assert min(opened.evaluate(CONTRASTS)) >= 4.5
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == ("light" in request.node.name)


def test_on_paper_nothing_is_cut_off(opened) -> None:
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.querySelector('#table-2 .scroll')).overflow") == "visible"
    assert opened.evaluate("getComputedStyle(document.querySelector('#table-2 .scroll')).maxHeight") == "none"
    assert not opened.locator(".contents").is_visible()
