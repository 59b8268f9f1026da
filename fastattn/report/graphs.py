"""Graphs with two axes: accuracy against throughput, roofline, scaling with batch and size, and trainings' losses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from typing import Any

from .chart import COLORS, OTHER_COLOR
from .papers import printed
from .result import Record, of_models, records, suites
from .rivals import grouped
from .throughput import MODULES, YARDSTICKS

MARKERS = "osD^vPX*<>ph8"
MOST_COLUMNS = 2
ROOF_COLOR = "#3d4b5c"
OTHERS = ("#7a5ea8", "#3f8f5f", "#b8860b", "#a0527a", "#5b7f95", "#8a6d4b", "#6b8e23", "#996666", "#4682b4")


@dataclass(frozen=True)
class Series:
    """Points (x, y), joined by a line or not, with a text beside each or none."""

    label: str
    color: str
    points: list[tuple[float, float]]
    joined: bool = True
    marker: str = "o"
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Graph:
    """Panels of series; `level` is a horizontal line and what it stands for."""

    name: str
    title: str
    x: str
    y: str
    panels: dict[str, list[Series]]
    log_x: bool = False
    log_y: bool = False
    level: tuple[str, float] | None = None


def graphs(result: Mapping[str, Any]) -> list[Graph]:
    """Every graph that a result has points for."""
    found = [*accuracy(result), *roofline(result), *scaling(result), *trainings(result)]
    return [graph for graph in found if graph.panels]


def top1(record: Record) -> float | None:
    """The ImageNet accuracy in percent that a table's own paper prints for a row; other authors' trainings differ."""
    return printed(record["table"], record["model"], record["attention"], record.get("variant")).get("top1")


def accuracy(result: Mapping[str, Any]) -> list[Graph]:
    """For each table, the papers' accuracy against measured images per second; a panel for each network, at the
    smallest size and the largest batch."""
    made = []
    for table, found in by_table(result, "throughput").items():
        panels: dict[str, list[Series]] = {}
        for model, some in grouped(found, lambda r: r["model"]).items():
            size, batch = min((r["shape"][-1], -r["shape"][0]) for r in some)
            here = [(r, known) for r in some if r["shape"][::3] == [-batch, size] and (known := top1(r))]
            series = [
                Series(
                    rival,
                    color(rival),
                    [(r["images_per_s"], percent) for r, percent in here if r["rival"] == rival],
                    joined=False,
                    marker=marker,
                    texts=[attention(r) for r, _ in here if r["rival"] == rival == "eager"],
                )
                for rival, marker in zip(dict.fromkeys(r["rival"] for r, _ in here), cycle(MARKERS), strict=False)
            ]
            panels |= {f"{model}, {size} x {size}, batch {-batch}": series} if series else {}
        title = f"Accuracy as the paper prints it against throughput as measured here ({table})"
        x, y = "images per second, measured here", "ImageNet top-1, % (the paper's)"
        made.append(Graph(f"accuracy-{table}", title, x, y, panels))
    return made


def roofline(result: Mapping[str, Any]) -> list[Graph]:
    """Bytes per second that modules achieve, by how many they have to move, under those of measured copies: a line
    through the copies, or at the level of a single one."""
    names = [name for name, suite in suites(result).items() if suite.get("roofline")]
    found = [r for name in (*names, "throughput") for r in records(result, name) if moved(r)]
    panels: dict[str, list[Series]] = {}
    for what, some in grouped(found, lambda r: f"{attention(r)} {r['work']}, {r['dtype']}").items():
        by_rival = grouped([r for r in some if r["rival"] != "copy"], lambda r: r["rival"])
        panels[what] = [
            Series(rival, color(rival), sorted((moved(r), r["gb_per_s"]) for r in seen), joined=False, marker=marker)
            for (rival, seen), marker in zip(by_rival.items(), cycle(MARKERS), strict=False)
        ]
    copies = copied(result)
    if len(copies) > 1:
        roof = Series("copy, measured", ROOF_COLOR, copies, marker=".")
        panels = {what: [*series, roof] for what, series in panels.items()}
    [(size, rate)] = copies if len(copies) == 1 else [(0.0, 0.0)]
    level = (f"copy of {size:.3g} MB: {rate:.3g} GB/s", rate) if rate else None
    x, y = "MB that have to move", "GB/s achieved"
    title = "Roofline: bytes per second of modules, under those of a measured copy"
    return [Graph("roofline", title, x, y, panels, log_x=True, log_y=True, level=level)]


def moved(record: Record) -> float:
    """Megabytes that a module has to move; 0 where its bandwidth is not known."""
    if not record.get("gb_per_s") or (record["suite"] == "throughput" and record["table"] != MODULES):
        return 0.0
    return (record.get("bytes_moved_at_least") or record["gb_per_s"] * record["median_ms"] * 1e6) / 1e6


def copied(result: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Megabytes of the measured copies, rising, and gigabytes per second; of several copies of a size the median."""
    found: dict[float, set[float]] = {}  # the members of a contest share its copy
    for record in (record for suite in (*suites(result), "throughput") for record in records(result, suite)):
        rate = record.get("gb_per_s") if record["rival"] == "copy" else record.get("copy_gb_per_s")
        if rate and moved(record):
            found.setdefault(moved(record), set()).add(rate)
    return sorted((size, median(rates)) for size, rates in found.items())


def scaling(result: Mapping[str, Any]) -> list[Graph]:
    """Images per second over the batch, and over the size, where a network ran with more than one."""
    made = []
    for table, found in by_table(result, "throughput", *of_models(result)).items():
        fast = {(r["model"], attention(r)) for r in found if r["rival"] not in YARDSTICKS}
        shown = [
            r
            for r in found
            if r["rival"] == "eager" or r.get("attention") == "none" or (r["model"], attention(r)) in fast
        ]
        for what, place, rest in (("batch", 0, -1), ("size", -1, 0)):
            panels = {
                model: series
                for model, some in grouped(shown, lambda r: r["model"]).items()
                if (series := scaling_series(some, place, rest))
            }
            title = f"Images per second by {what} ({table}); of attentions without a fast path eager alone"
            name = f"scaling-{what}-{table}"
            made.append(Graph(name, title, what, "images per second", panels, log_x=True, log_y=True))
    return made


def scaling_series(found: list[Record], place: int, rest: int) -> list[Series]:
    """For each attention and implementation of a network a line through what ran with more than one value at `place` of
    the shape; what else differs, such as the value at `rest`, is in the label."""
    names = dict.fromkeys(map(attention, found))
    fast = {attention(r) for r in found if r["rival"] != "eager"}
    markers = dict(zip(names, cycle(MARKERS), strict=False))
    others = dict(zip((name for name in names if name not in fast), cycle(OTHERS), strict=False))

    def options(record: Record) -> tuple[str, ...]:
        fixed = f"{'size' if rest else 'batch'} {record['shape'][rest]}"
        return fixed, record["dtype"], record["format"], record["work"], str(record.get("launch"))

    differing = [len(set(values)) > 1 for values in zip(*map(options, found), strict=True)]
    series = []
    for (name, rival, *some), seen in grouped(found, lambda r: (attention(r), r["rival"], *options(r))).items():
        points = sorted({r["shape"][place]: r["images_per_s"] for r in seen}.items())
        if len(points) > 1:
            label = ", ".join([f"{name} {rival}", *(text for text, kept in zip(some, differing, strict=True) if kept)])
            shown = color(rival) if name in fast else others[name]
            series.append(Series(label, shown, points, marker=markers[name]))
    return series


def color(rival: str) -> str:
    return COLORS.get(rival, OTHER_COLOR)


def attention(record: Record) -> str:
    """A record's attention and variant in words."""
    if "placed" in record:
        return record["placed"]
    name = record.get("attention") or record.get("operation") or record["suite"]
    return " ".join(filter(None, (name, record.get("variant") if record.get("table") != MODULES else None)))


def trainings(result: Mapping[str, Any]) -> list[Graph]:
    """The loss of each step of the trainings; a panel for each attention, a curve for each backend."""
    panels = {
        name: [
            Series(backend, color(backend), list(enumerate(losses, 1)), marker="")
            for backend, losses in by_backend.items()
        ]
        for name, by_backend in curves(result).items()
    }
    title = "Loss by step of a training on digits"
    return [Graph("convergence", title, "step", "loss", panels, log_y=True)]


def curves(result: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Attention -> backend -> losses."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records(result, "convergence"):
        found.setdefault(record["operation"].upper(), {})[record["backend"]] = record["losses"]
    return found


def by_table(result: Mapping[str, Any], *suites: str) -> dict[str, list[Record]]:
    """The networks' records by the table that they are in; of the suite without tables as "models"."""
    found = [r for suite in suites for r in records(result, suite) if r.get("images_per_s")]
    networks = [r for r in found if r["model"] is not None and len(r["shape"]) == 4]
    return grouped(networks, lambda r: r.get("table", "models"))


def draw(figure: Any, graph: Graph) -> None:
    """Fill a figure with a graph's panels, above one legend."""
    columns = min(MOST_COLUMNS, len(graph.panels))
    axes = figure.subplots(-(-len(graph.panels) // columns), columns, squeeze=False).flat
    legend: dict[str, Any] = {}
    for (title, series), axis in zip(graph.panels.items(), axes, strict=False):
        for place, each in enumerate(series):
            plot(axis, each, broad=graph.name == "convergence" and place == 0)  # the first shows beneath the others
        if graph.level:
            axis.axhline(graph.level[1], color=ROOF_COLOR, linewidth=1.0, linestyle="--", label=graph.level[0])
        plain_ticks(axis, graph, sorted({x for each in series for x, _ in each.points}))
        axis.margins(0.08, 0.12)
        axis.set_title(title, fontsize=8, loc="left")
        axis.set_xlabel(graph.x, fontsize=7)
        axis.set_ylabel(graph.y, fontsize=7)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axis.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    for axis in axes:  # those without a panel
        axis.set_axis_off()
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=5, fontsize=6.5, frameon=False)


def plain_ticks(axis: Any, graph: Graph, places: list[float]) -> None:
    """Logarithmic axes with plain numbers; for batches and sizes those that were measured."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for scale, each in ((graph.log_x, "x"), (graph.log_y, "y")):
        if scale:
            getattr(axis, f"set_{each}scale")("log")
            found = getattr(axis, f"{each}axis")
            found.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
            found.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            found.set_minor_locator(NullLocator())
    if graph.name.startswith("scaling"):
        axis.set_xticks(places, [f"{place:g}" for place in places])


def plot(axis: Any, series: Series, *, broad: bool) -> None:
    x, y = zip(*series.points, strict=True)
    axis.plot(
        x,
        y,
        label=series.label,
        color=COLORS["eager"] if broad else series.color,
        linestyle="-" if series.joined else "",
        linewidth=4.0 if broad else 1.2,
        marker=series.marker,
        markersize=4,
    )
    for (at_x, at_y), text in zip(series.points, series.texts, strict=False):
        axis.annotate(text, (at_x, at_y), textcoords="offset points", xytext=(4, 3), fontsize=6)
