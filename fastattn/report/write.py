"""A report in all its formats: report.md, report.tex, report.html, csv/ and plots/."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .comparison import comparison_tables, differences
from .facts import facts
from .latex import document
from .naming import unique_slugs
from .page import page
from .papers import papers_own_tables
from .plots import Plot, answers, plots
from .quality import warnings
from .result import attempts
from .rivals import in_order
from .sheets import records_csv, to_csv
from .table import Table, to_markdown
from .tables import tables

TITLE = "Measured results"
LIST = "files.txt"  # the files that a report has written, which the next one may remove
OF_A_REPORT = re.compile(r"(csv|plots)/[a-z0-9-]+\.(csv|png|svg)")


@dataclass(frozen=True)
class Content:
    """What every format shows, each in its own way, in this order but for the facts, which come last."""

    facts: dict[str, str]
    answers: list[tuple[str, list[Plot]]]
    warnings: list[str]
    tables: list[Table]
    plots: list[Plot]
    papers: list[Table]


def content(results: Mapping[str, dict[str, Any]]) -> Content:
    """What is shown of results by label; of several each under its label, and side by side first.

    Raises ImportError without matplotlib.
    """
    papers = papers_own_tables(record["table"] for each in results.values() for record in attempts(each, "throughput"))
    if len(results) == 1:
        [result] = results.values()
        return Content(facts(result), answers(result), warnings(result), tables(result), plots(result), papers)
    known = {label: facts(result) for label, result in results.items()}
    shown = Content(together(known), [], differences(results), comparison_tables(results), [], papers)
    names = unique_slugs(results)
    for name, (label, result) in zip(names, results.items(), strict=True):
        shown.answers.extend(
            (f"{label}: {said}", [labelled(name, label, plot) for plot in drawn]) for said, drawn in answers(result)
        )
        shown.warnings.extend(f"{label}: {warning}" for warning in warnings(result))
        shown.tables.extend(replace(table, title=f"{label}: {table.title}") for table in tables(result))
        shown.plots.extend(labelled(name, label, plot) for plot in plots(result))
    return shown


def labelled(name: str, label: str, plot: Plot) -> Plot:
    """A plot of one of several results."""
    return replace(plot, name=f"{name}-{plot.name}", title=f"{label}: {plot.title}")


def together(known: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The facts of several results by label: once what all of them share, else each under its label."""
    found: dict[str, str] = {}
    for what in in_order(name for facts_of_one in known.values() for name in facts_of_one):
        values = {label: one[what] for label, one in known.items() if what in one}
        if len(values) == len(known) and len(set(values.values())) == 1:
            found[what] = next(iter(values.values()))
        else:
            found |= {f"{label}, {what}": fact for label, fact in values.items()}
    return found


def write_report(results: Mapping[str, dict[str, Any]], directory: str | Path) -> list[Path]:
    """Write the report of results (as `load` returns them) by label into a directory, made if it is missing, and return
    the paths of its files: report.md, report.tex, report.html, csv/, plots/, and files.txt, the list of them. What an
    earlier report wrote there, by its own list, is removed; other files stay.

    Raises OSError where the directory cannot be written, ImportError without matplotlib.
    """
    directory = Path(directory)
    for folder in ("csv", "plots"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    shown = content(results)
    files: dict[str, str | bytes] = {
        "report.md": markdown(shown),
        "report.tex": latex(shown),
        "report.html": page(
            TITLE, shown.facts, shown.warnings, shown.tables, shown.plots, answers=shown.answers, papers=shown.papers
        ),
        "csv/records.csv": records_csv(results),
    }
    every = [*shown.tables, *shown.papers]
    names = unique_slugs(["records", *(table.title for table in every)])[1:]
    files |= {f"csv/{name}.csv": to_csv(table) for name, table in zip(names, every, strict=True)}
    drawn = [*(plot for _, some in shown.answers for plot in some), *shown.plots]
    files |= {f"plots/{plot.name}.png": plot.png for plot in drawn}
    files |= {f"plots/{plot.name}.svg": plot.svg for plot in drawn}
    files[LIST] = "".join(f"{name}\n" for name in files)
    for name in earlier(directory):
        (directory / name).unlink(missing_ok=True)
    for name, text in reversed(files.items()):  # the list first: a report cut short is known to the next
        (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [directory / name for name in files]


def earlier(directory: Path) -> list[str]:
    """The files in csv/ and plots/ that a report before this one lists as its own."""
    path = directory / LIST
    names = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [name for name in names if OF_A_REPORT.fullmatch(name) and (directory / name).is_file()]


def images(drawn: Sequence[Plot]) -> dict[str, str]:
    """The path of each plot's PNG, relative to the report, and its title."""
    return {f"plots/{plot.name}.png": plot.title for plot in drawn}


def pictures(drawn: Sequence[Plot]) -> list[str]:
    """The same in Markdown."""
    return [f"![{title}]({path})\n" for path, title in images(drawn).items()]


def latex(shown: Content) -> str:
    """The same as a LaTeX document."""
    first = [(said, images(drawn)) for said, drawn in shown.answers]
    every = [*shown.tables, *shown.papers]
    return document(TITLE, shown.facts, shown.warnings, every, images(shown.plots), first)


def markdown(shown: Content) -> str:
    """The answers, warnings, tables, plots, the papers' own tables, and last the facts, under one heading."""
    return "\n".join(
        [
            f"# {TITLE}\n",
            *(part for said, drawn in shown.answers for part in (f"{said}\n", *pictures(drawn))),
            *(f"> **Warning**: {warning}\n" for warning in shown.warnings),
            *map(to_markdown, shown.tables),
            *pictures(shown.plots),
            *(["## What the papers print\n"] if shown.papers else []),
            *map(to_markdown, shown.papers),
            *(["## How it was measured\n"] if shown.facts else []),
            *(f"- **{name}**: {fact}" for name, fact in shown.facts.items()),
            "",
        ]
    )
