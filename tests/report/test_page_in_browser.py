"""The HTML page in a real browser: how it sorts, scrolls and prints, and that it complains of nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastattn.report import write_report
from tests.report.cases import bench_result, long_result
from tests.report.page_cases import CELLS, FALLING, NAMES, NAMES_RISING, RISING, realistic

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


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
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(realistic(), encoding="utf-8")
    return path.as_uri()


@contextmanager
def window(browser, address: str, **options) -> Iterator:
    """A page in a window; whatever it complains of or asks for is an AssertionError."""
    context = browser.new_context(**{"viewport": DESKTOP} | options)
    view = context.new_page()
    trouble: list[str] = []
    view.on("console", lambda message: trouble.append(f"console: {message.text}"))
    view.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    view.on("request", lambda asked: asked.url == address or trouble.append(f"request: {asked.url}"))
    view.goto(address)
    yield view
    context.close()
    assert [line for line in trouble if not line.startswith("request: data:")] == []


@pytest.fixture
def opened(browser, address: str, request: pytest.FixtureRequest) -> Iterator:
    with window(browser, address, **getattr(request, "param", {})) as view:
        yield view


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


def test_a_written_report_opens_and_each_of_its_tables_sorts(browser, tmp_path: Path) -> None:
    benchmarks = long_result(500)["benchmarks"]
    write_report({"one": bench_result(benchmarks[:60] + benchmarks[-40:])}, tmp_path)  # networks and modules
    with window(browser, (tmp_path / "report.html").as_uri()) as view:
        view.evaluate("dispatchEvent(new Event('beforeprint'))")  # opens what is folded
        plots, tables = view.locator("figure svg"), view.locator("table")
        assert plots.count() == len(list((tmp_path / "plots").glob("*.svg"))) > 3
        assert all(plot.bounding_box()["width"] > 300 for plot in plots.all())
        assert tables.count() == len(list((tmp_path / "csv").glob("*.csv"))) - 1 > 2  # records.csv is none of them
        for table in tables.all():
            before = table.locator("tbody tr").all_inner_texts()
            header = table.locator("thead th").last
            header.locator("button").click()
            header.locator("button").click()
            assert header.get_attribute("aria-sort") == "descending"
            assert sorted(table.locator("tbody tr").all_inner_texts()) == sorted(before)
        eager = view.get_by_role("button", name="eager images/s").first
        eager.click()
        place = eager.evaluate("e => e.closest('th').cellIndex")
        cells = tables.first.locator(f"tbody tr > :nth-child({place + 1})").all_inner_texts()
        rates = [float(cell.partition(" ")[0]) for cell in cells]
        assert rates == sorted(rates)
        assert rates[0] < rates[-1]
