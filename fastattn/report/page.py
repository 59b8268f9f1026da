"""One self-contained HTML page: what a result says in a sentence and a picture, then tables that sort by their headers,
plots, the papers' own tables, and how it was measured. It asks nothing of the network: styles, script and plots stand
in the document, and its policy forbids everything else."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Protocol
from xml.etree import ElementTree

from .table import Table

NUMBER = re.compile(r"(?:[≥≤<>≈~]\s*)?([-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?=$|[\s×%(*†])", re.IGNORECASE)
FAILED = re.compile(r"failed\b|nan\b", re.IGNORECASE)
ABSENT = ("", "-", "–", "—", "not measured")
LONG = 30  # rows, beyond which a table scrolls beneath its header
MOST_PLOTS, MOST_NOTES = 3, 3  # more fold
LOCAL_URL = re.compile(r"""url\(\s*["']?#([^"')]+)["']?\s*\)""")


class Drawing(Protocol):
    """What the page needs of a plot: its title, and its picture as the text of an SVG file."""

    @property
    def title(self) -> str: ...

    @property
    def svg(self) -> str: ...


def page(
    title: str,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    tables: Sequence[Table],
    plots: Sequence[Drawing],
    *,
    answers: Sequence[tuple[str, Sequence[Drawing]]] = (),
    papers: Sequence[Table] = (),
) -> str:
    """An HTML document: `answers`, sentences and pictures, on top, each plot inline, each table sortable by its
    columns, `facts` by name last; long runs of plots, the papers' tables, warnings and notes fold.

    Raises xml.etree.ElementTree.ParseError where a plot's SVG is not well-formed.
    """
    own = files(__package__)
    return Template((own / "page.html").read_text("utf-8")).substitute(
        title=escape(title),
        css=(own / "page.css").read_text("utf-8"),
        js=(own / "page.js").read_text("utf-8"),
        answers="\n".join(answer(i, said, drawn) for i, (said, drawn) in enumerate(answers, 1)),
        warnings=warning_list(warnings),
        contents=contents(facts, tables, plots),
        tables=section("tables", "Tables", [table_section(i, table) for i, table in enumerate(tables, 1)]),
        plots=section(
            "plots", "Plots", folded([figure(i, plot) for i, plot in enumerate(plots, 1)], MOST_PLOTS, "plots")
        ),
        papers=section("papers", "What the papers print", folded(paper_sections(len(tables), papers), 0, "tables")),
        facts=fact_list(facts),
    )


def answer(place: int, said: str, drawn: Sequence[Drawing]) -> str:
    """A sentence above its pictures, which stand side by side where there is room."""
    figures = [figure(i, plot, f"answer-{place}") for i, plot in enumerate(drawn, 1)]
    return "\n".join([f'<p class="answer">{escape(said)}</p>', '<div class="answers">', *figures, "</div>"])


def paper_sections(before: int, papers: Sequence[Table]) -> list[str]:
    return [table_section(i, table) for i, table in enumerate(papers, before + 1)]


def folded(parts: Sequence[str], most: int, what: str) -> list[str]:
    """More parts than that behind one line that opens."""
    if len(parts) <= most:
        return [*parts]
    return [f"<details><summary>{len(parts)} {what}</summary>", *parts, "</details>"]


def section(name: str, heading: str, parts: Sequence[str]) -> str:
    """Parts under a heading of the second level, or nothing."""
    if not parts:
        return ""
    return "\n".join([f'<section id="{name}">', f"<h2>{escape(heading)}</h2>", *parts, "</section>"])


def warning_list(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    count = f"{len(warnings)} warning{'s' * (len(warnings) > 1)}"
    return f'<details class="warnings" id="warnings"><summary>{count}</summary>\n<ul>{items}</ul>\n</details>'


def fact_list(facts: Mapping[str, str]) -> str:
    pairs = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()]
    return section("facts", "How it was measured", ['<dl class="facts">', *pairs, "</dl>"] if pairs else [])


def contents(facts: Mapping[str, str], tables: Sequence[Table], plots: Sequence[Drawing]) -> str:
    """Links to the sections, and to every plot and table."""
    items = []
    for name, heading, titles in (
        ("table", "Tables", [table.title for table in tables]),
        ("plot", "Plots", [plot.title for plot in plots]),
    ):
        links = "".join(f'<li><a href="#{name}-{i}">{escape(title)}</a></li>' for i, title in enumerate(titles, 1))
        items += [f'<li><a href="#{name}s">{heading}</a><ul>{links}</ul></li>'] if titles else []
    items += ['<li><a href="#facts">How it was measured</a></li>'] if facts else []
    listed = ['<nav aria-label="Contents">', "<ul>", *items, "</ul>", "</nav>"]
    return "\n".join(['<details class="contents"><summary>Contents</summary>', *listed, "</details>"])


def figure(place: int, plot: Drawing, kind: str = "plot") -> str:
    """A plot under its title; it shrinks with the page, and scrolls before it becomes too small to read."""
    name = f"{kind}-{place}"
    return "\n".join(
        [
            f'<figure id="{name}">',
            f'<figcaption><h3 id="{name}-title">{escape(plot.title)}</h3></figcaption>',
            f'<div class="scroll plot" role="region" tabindex="0" aria-labelledby="{name}-title">',
            inline_svg(plot.svg, f"{name}-", plot.title),
            "</div>",
            "</figure>",
        ]
    )


def inline_svg(svg: str, prefix: str, label: str) -> str:
    """An SVG file as an element of a page: ids, and what refers to them, carry a prefix; its own styles reach no
    further than itself; metadata, namespaces and references to other files are gone."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for child in [child for child in element if local(child.tag) == "metadata"]:
            element.remove(child)
    for element in root.iter():
        element.tag = local(element.tag)
        element.attrib = {local(name): value for name, value in element.items()}
        for name, value in list(element.items()):
            if name == "id":
                element.set(name, prefix + value)
            elif name == "href" and value.startswith("#"):
                element.set(name, f"#{prefix}{value[1:]}")
            elif name == "href" and not value.startswith("data:"):
                del element.attrib[name]
            else:
                element.set(name, LOCAL_URL.sub(rf"url(#{prefix}\1)", value))
        if element.tag == "style":
            element.text = re.sub(r"\*\s*{", f"#{prefix}svg *{{", element.text or "")
    width = root.attrib.pop("width", "100%")
    root.attrib.pop("height", None)
    root.attrib.update({"id": f"{prefix}svg", "role": "img", "aria-label": label, "style": f"max-width: {width}"})
    return ElementTree.tostring(root, encoding="unicode")


def local(name: str) -> str:
    """A name without its XML namespace."""
    return name.rpartition("}")[2]


def table_section(place: int, table: Table) -> str:
    """A table that scrolls on its own, under its title and above its notes."""
    name = f"table-{place}"
    numeric = numeric_columns(table)
    head = "".join(
        f'<th scope="col"{classes("number" * right)}><button type="button">{escape(column)}</button></th>'
        for column, right in zip(table.columns, numeric, strict=True)
    )
    long = " long" if len(table.rows) > LONG else ""
    notes = "\n".join(folded([f"<p>{escape(note)}</p>" for note in table.notes], MOST_NOTES, "notes"))
    return "\n".join(
        [
            f'<section id="{name}">',
            f'<h3 id="{name}-title">{escape(table.title)}</h3>',
            f'<div class="scroll{long}" role="region" tabindex="0" aria-labelledby="{name}-title">',
            "<table>",
            f'<caption class="hidden">{escape(table.title)}</caption>',
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *(table_row(row, numeric) for row in table.rows),
            "</tbody>",
            "</table>",
            "</div>",
            *([f'<div class="notes">{notes}</div>'] if notes else []),
            "</section>",
        ]
    )


def table_row(row: Sequence[str], numeric: Sequence[bool]) -> str:
    """Cells, the first one a header; a number's value beside its text, for the sorting."""
    cells = []
    for place, (cell, right) in enumerate(zip(row, numeric, strict=True)):
        tag, scope = ("td", "") if place else ("th", ' scope="row"')
        found = value(cell) if right else None
        worth = "" if found is None else f' data-value="{found!r}"'
        kind = classes("number" * right, "missing" * missing(cell), "failed" * bool(FAILED.match(cell)))
        cells.append(f"<{tag}{scope}{kind}{worth}>{escape(cell)}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"


def classes(*names: str) -> str:
    """The attribute of the classes that have a name, if one has."""
    found = " ".join(filter(None, names))
    return f' class="{found}"' if found else ""


def value(cell: str) -> float | None:
    """The number that a cell begins with ("3.73 (2%)", "11.5×", "≥ 4"), or None."""
    found = NUMBER.match(cell)
    return float(found[1].replace("−", "-")) if found else None


def missing(cell: str) -> bool:
    """Whether a cell says that there is no value, or that it could not be measured."""
    return cell in ABSENT or bool(FAILED.match(cell))


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers, where they hold anything."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    present = [[cell for cell in column if not missing(cell)] for column in columns]
    return [bool(cells) and all(value(cell) is not None for cell in cells) for cells in present]
