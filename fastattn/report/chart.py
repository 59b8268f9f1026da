"""Bars: how many times faster than eager each rival is, case by case, and networks' images per second."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .result import Record, of_models, records, suites
from .rivals import CASE, cases, grouped, in_order, shown, speedup
from .table import number
from .throughput import MODULES

PAPERS = "paper's"
COLORS = {"plain": "#3d4b5c", "eager": "#a9b4c0", "compile": "#6f8fb0", "native": "#c1501f", "triton": "#c1501f"}
COLORS |= {
    "plain compiled": "#22303f",
    "native compiled": "#7a2b0b",
    "triton compiled": "#7a2b0b",
    PAPERS: "#111111",
}
OTHER_COLOR = "#4f7f52"
MOST_GROUPS = 24  # of one panel


@dataclass(frozen=True)
class Panel:
    """Groups of bars: label -> rival -> length; of ratios, and of `shares`, a line shows where one is."""

    title: str
    groups: dict[str, dict[str, float]]
    relative: bool = False
    shares: bool = False


def panels(result: Mapping[str, Any]) -> list[Panel]:
    """Every panel that a result has bars for, none with more groups than a page has room for."""
    found = suite_panels(result) + model_panels(result) + throughput_panels(result)
    return [part for panel in found for part in parts(panel)]


def parts(panel: Panel) -> list[Panel]:
    """A panel, or several where it is too long for one."""
    labels = list(panel.groups)
    count = -(-len(labels) // MOST_GROUPS)
    if count < 2:
        return [panel]
    return [
        Panel(
            f"{panel.title} ({place + 1} of {count})",
            {label: panel.groups[label] for label in labels[place * MOST_GROUPS : (place + 1) * MOST_GROUPS]},
            panel.relative,
        )
        for place in range(count)
    ]


def suite_panels(result: Mapping[str, Any]) -> list[Panel]:
    """Panels for each suite, one for forward and one for training: speed over eager."""
    charted = [name for name, suite in suites(result).items() if suite.get("chart")]
    return [panel for name in charted for panel in panels_of(result, name)]


def panels_of(result: Mapping[str, Any], name: str) -> list[Panel]:
    suite = suites(result)[name]
    label = partial(label_of, suite)
    found = [r for r in records(result, name) if r["rival"] != "eager" and "eager" in r["speedup"]]
    made = []
    for work, dtype, launch in dict.fromkeys((r["work"], r["dtype"], r.get("launch")) for r in found):
        some = [r for r in found if (r["work"], r["dtype"], r.get("launch")) == (work, dtype, launch)]
        groups: dict[str, dict[str, float]] = {}
        for members in cases(some, label):
            groups[label(next(iter(members.values())))] = {name: speedup(r, "eager") for name, r in members.items()}
        how = f", {launch}" if launch else ""
        made.append(Panel(f"{suite['chart']} {work}, {dtype}{how}: times eager's speed", groups, relative=True))
    return made


def label_of(suite: Mapping[str, Any], record: Record) -> str:
    """What tells a case from the others of its panel."""
    options = [(name, record[name]) for name in suite.get("label", ()) if name in record]
    lines = [value if isinstance(value, str) else f"{shown(value)} {name}" for name, value in options]
    return "\n".join([CASE["shape"](record), *lines, *([record["format"]] if "format" in suite["columns"] else [])])


def model_panels(result: Mapping[str, Any]) -> list[Panel]:
    """One panel for all models: images per second."""
    groups: dict[str, dict[str, float]] = {}
    for members in cases(
        [record for name in of_models(result) for record in records(result, name)],
        lambda r: (r["model"], r["shape"][0], r["format"], r["dtype"], r.get("launch"), r.get("levels"), r["work"]),
    ):
        first = next(iter(members.values()))
        name = f"{first['model']}, batch {first['shape'][0]}\n{first['format']}"
        name += f", {first['dtype']}, {first['launch']}" if "launch" in first else ""
        name += f", {first['levels']} levels" if first.get("levels") else ""
        name += f", {first['work']}" if first["work"] != "forward" else ""
        groups[name] = images_per_s(members)
    return [Panel("Whole models: images per second", groups)] if groups else []


def throughput_panels(result: Mapping[str, Any]) -> list[Panel]:
    """A panel for each backbone, batch and size of each table: images per second of each attention. One for the modules
    alone: speed over eager."""
    found = records(result, "throughput")
    made = []
    for table, some in grouped(found, lambda r: r["table"]).items():
        if table == MODULES:
            made.append(bars("Modules alone: times eager's speed", some, times_eager, relative=True))
            continue
        for (model, batch, size), here in grouped(some, lambda r: (r["model"], r["shape"][0], r["shape"][-1])).items():
            title = f"{model}, batch {batch}, {size} x {size} ({table}): images per second"
            made.append(bars(title, here, images_per_s))
    return [panel for panel in made if panel.groups]


def bars(
    title: str, found: list[Record], lengths: Callable[[Mapping[str, Record]], dict[str, float]], relative: bool = False
) -> Panel:
    """A panel with a group for each attention and variant, and for what else differs among the records."""
    differing = [name for name in ("shape", "dtype", "format", "work") if len({str(r[name]) for r in found}) > 1]

    def name(record: Record) -> str:
        return attention_label(record, differing)

    groups = {name(next(iter(members.values()))): lengths(members) for members in cases(found, name)}
    return Panel(title, {label: values for label, values in groups.items() if values}, relative)


def attention_label(record: Record, differing: Iterable[str]) -> str:
    """An attention, its variant, and what differs from the others of its panel."""
    name = " ".join(filter(None, (record["attention"], record.get("variant"))))
    return "\n".join(filter(None, (name, ", ".join(CASE[what](record) for what in differing))))


def times_eager(members: Mapping[str, Record]) -> dict[str, float]:
    return {rival: speedup(r, "eager") for rival, r in members.items() if "eager" in r["speedup"]}


def images_per_s(members: Mapping[str, Record]) -> dict[str, float]:
    return {rival: r["images_per_s"] for rival, r in members.items() if r.get("images_per_s")}


def rivals_of(panel: Panel) -> list[str]:
    """Whose bars a panel has, from top to bottom."""
    names = in_order(name for values in panel.groups.values() for name in values)
    return sorted(names, key=lambda name: name == PAPERS)  # last


def fill(axis: Any, panel: Panel) -> None:
    """Horizontal bars, a number at the end of each."""
    names = rivals_of(panel)
    height = 0.8 / max(1, len(names))
    groups = [[name for name in names if name in values] for values in panel.groups.values()]
    for name in names:
        present = [  # where the bar's middle is, and how long it is: those of a group lie one at another
            (row + height * (group.index(name) + 0.5 - len(group) / 2), values[name])
            for row, (group, values) in enumerate(zip(groups, panel.groups.values(), strict=True))
            if name in group
        ]
        bars = axis.barh(
            [middle for middle, _ in present],
            [value for _, value in present],
            height,
            label=name,
            color=COLORS.get(name, OTHER_COLOR),
        )
        axis.bar_label(bars, [number(value) + "×" * panel.relative for _, value in present], padding=2, fontsize=7)
    if panel.relative or panel.shares:
        axis.axvline(1, color="#888888", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(panel.groups)), list(panel.groups), fontsize=7)
    axis.set_ylim(len(panel.groups) - 0.5, -0.5)  # the first on top
    axis.margins(x=0.12)
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names), frameon=False)
