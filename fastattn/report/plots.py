"""A result's plots as PNG and SVG; matplotlib is imported when the first one is drawn."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO, StringIO
from typing import Any

from . import graphs, shares
from .chart import Panel, fill, panels, rivals_of
from .facts import cpu_facts, gpu_facts, on_gpu
from .naming import slug, unique_slugs

ROW_INCHES, BAR_INCHES, PANEL_INCHES, WIDTH, NARROW = 0.42, 0.13, 0.9, 9.0, 5.2
DOTS_PER_INCH = 120


@dataclass(frozen=True)
class Plot:
    """A picture: its name, for a file; its title; and itself as the bytes of a PNG and the text of an SVG file."""

    name: str
    title: str
    png: bytes
    svg: str


def plots(result: Mapping[str, Any]) -> list[Plot]:
    """Every plot that a result has something to draw for: bars, accuracy, roofline, scaling, trainings.

    Raises ImportError without matplotlib.
    """
    where = machine(result)
    bars = panels(result)
    names = unique_slugs([panel.title.partition(":")[0] for panel in bars])
    drawn = [bar_plot(name, panel, where) for name, panel in zip(names, bars, strict=True)]
    return drawn + [graph_plot(graph, where) for graph in graphs.graphs(result)]


def answers(result: Mapping[str, Any]) -> list[tuple[str, list[Plot]]]:
    """For each table of networks what it says: a sentence, and a picture of each network, narrow enough for a phone.

    Raises ImportError without matplotlib.
    """
    where, made = machine(result), []
    for answer in shares.shares(result):
        names = unique_slugs(f"shares {answer.table} {panel.title.partition(':')[0]}" for panel in answer.panels)
        drawn = [bar_plot(name, panel, where, NARROW) for name, panel in zip(names, answer.panels, strict=True)]
        made.append((answer.sentence, drawn))
    return made


def machine(result: Mapping[str, Any]) -> str:
    """Where the numbers come from, for beneath a title."""
    known = result.get("machine_info") or {}
    return "; ".join(gpu_facts(known)[:1] if on_gpu(result) else cpu_facts(known)[:2])


def bar_plot(name: str, panel: Panel, where: str, width: float = WIDTH) -> Plot:
    """A panel of bars."""
    height = PANEL_INCHES + max(ROW_INCHES, BAR_INCHES * len(rivals_of(panel))) * len(panel.groups)
    return picture(name, panel.title, where, height, lambda figure: fill(figure.subplots(), panel), width)


def graph_plot(graph: graphs.Graph, where: str) -> Plot:
    """A graph and its panels."""
    rows = -(-len(graph.panels) // graphs.MOST_COLUMNS)
    return picture(slug(graph.name), graph.title, where, PANEL_INCHES + 2.6 * rows, partial(graphs.draw, graph=graph))


def picture(
    name: str, title: str, where: str, height: float, draw: Callable[[Any], None], width: float = WIDTH
) -> Plot:
    """A drawing of so many inches, the same bytes each time."""
    png, svg = BytesIO(), StringIO()
    with style(name):
        figure = empty_figure(width, height)
        draw(figure)
        figure.suptitle(f"{title}\n{where}", fontsize=8.5, x=0.01, horizontalalignment="left")
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        figure.set_layout_engine("none")  # all has its place
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(name, title, png.getvalue(), svg.getvalue())


@contextmanager
def style(name: str) -> Iterator[None]:
    """Text as text, a dollar sign as itself, and ids that follow from a name; ImportError without matplotlib."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError("the plots need matplotlib: pip install 'fastattn[report]'") from error
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        yield


def empty_figure(width: float, height: float) -> Any:
    """A figure of so many inches, without pyplot: no display, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
