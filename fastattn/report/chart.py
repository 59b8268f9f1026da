"""A result's bar chart, and the curves of its trainings; matplotlib is imported when the first one is drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .result import records
from .tables import CASE, cases, in_order, number, on_gpu, speedup

COLORS = {"plain": "#3d4b5c", "eager": "#a9b4c0", "compile": "#6f8fb0", "native": "#c1501f", "triton": "#c1501f"}
OTHER_COLOR = "#4f7f52"
ROW_INCHES, PANEL_INCHES = 0.52, 0.9


@dataclass(frozen=True)
class Panel:
    """Groups of bars: label -> rival -> length."""

    title: str
    groups: dict[str, dict[str, float]]
    relative: bool = False


def draw(result: dict[str, Any], path: str | Path) -> None:
    """Write a PNG: how many times faster than eager each rival is, case by case, and the models' images per
    second.

    Raises ImportError without matplotlib, OSError where the file cannot be written.
    """
    panels = module_panels(result) + model_panels(result)
    sizes = [PANEL_INCHES + ROW_INCHES * len(panel.groups) for panel in panels] or [2.0]
    figure = empty_figure(9, sum(sizes) + 0.4)
    axes = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axis, panel in zip(axes, panels, strict=False):
        fill(axis, panel)
    if not panels:
        axes[0].text(0.5, 0.5, "this result has no bars to draw", ha="center")
        axes[0].set_axis_off()
    machine = result.get("machine_info", {})
    where = f"{machine.get('cpu', 'unknown CPU')}, threads: {machine.get('threads', '?')}"
    figure.suptitle(str(machine.get("gpu")) if on_gpu(result) else where, fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def draw_curves(result: dict[str, Any], path: str | Path) -> None:
    """Write a PNG: the loss of each step of the trainings, for each attention one panel with a curve for each backend.

    Raises ImportError without matplotlib, OSError where the file cannot be written.
    """
    trainings = curves(result)
    figure = empty_figure(4.5 * len(trainings), 3.2)
    axes = figure.subplots(1, len(trainings), squeeze=False)[0]
    for axis, (attention, by_backend) in zip(axes, trainings.items(), strict=True):
        for place, (backend, losses) in enumerate(by_backend.items()):  # the first is broad, and shows beneath
            steps = range(1, len(losses) + 1)
            width, color = (1.2, COLORS.get(backend, OTHER_COLOR)) if place else (4.0, COLORS["eager"])
            axis.plot(steps, losses, label=backend, linewidth=width, color=color)
        axis.set_yscale("log")
        axis.set_title(f"{attention}: loss by step of a training on digits", fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, format="png", dpi=150)


def curves(result: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Attention -> backend -> losses."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records(result, "convergence"):
        found.setdefault(record["operation"].upper(), {})[record["backend"]] = record["losses"]
    return found


def empty_figure(width: float, height: float) -> Any:
    """A figure of so many inches; ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ImportError as error:
        raise ImportError("the chart needs matplotlib: pip install 'fastattn[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


SUITES = {
    "module": "SCSA",
    "attention": "Partitioned attention",
    "pyramid": "CFSAM",
    "lga": "LGA",
    "acp": "ACP",
    "cat": "CAT",
}


def module_panels(result: dict[str, Any]) -> list[Panel]:
    """Panels for each suite, one for forward and one for training: speed over eager."""
    return [panel for suite in SUITES for panel in suite_panels(result, suite)]


def suite_panels(result: dict[str, Any], suite: str) -> list[Panel]:
    found = [r for r in records(result, suite) if r["rival"] != "eager" and "eager" in r["speedup"]]
    panels = []
    for work, dtype, launch in dict.fromkeys((r["work"], r["dtype"], r.get("launch")) for r in found):
        some = [r for r in found if (r["work"], r["dtype"], r.get("launch")) == (work, dtype, launch)]
        groups: dict[str, dict[str, float]] = {}
        for members in cases(some, label):
            groups[label(next(iter(members.values())))] = {name: speedup(r, "eager") for name, r in members.items()}
        how = f", {launch}" if launch else ""
        panels.append(Panel(f"{SUITES[suite]} {work}, {dtype}{how}: times eager's speed", groups, relative=True))
    return panels


def label(record: dict[str, Any]) -> str:
    """What tells a case from the others of its panel."""
    own = next((f"{record[name]} {name}" for name in ("parts", "concepts") if name in record), record["format"])
    options = [record[name] for name in ("ablation", "contraction") if name in record]
    options += [f"{record['layers']} layers"] if "layers" in record else []
    return "\n".join([CASE["shape"](record), *options, own])


def model_panels(result: dict[str, Any]) -> list[Panel]:
    """One panel for all models: images per second."""
    groups: dict[str, dict[str, float]] = {}
    for members in cases(
        records(result, "model"),
        lambda r: (r["model"], r["shape"][0], r["format"], r["dtype"], r.get("launch"), r.get("levels"), r["work"]),
    ):
        first = next(iter(members.values()))
        name = f"{first['model']}, batch {first['shape'][0]}\n{first['format']}"
        name += f", {first['dtype']}, {first['launch']}" if "launch" in first else ""
        name += f", {first['levels']} levels" if first.get("levels") else ""
        name += f", {first['work']}" if first["work"] != "forward" else ""
        groups[name] = {rival: r["images_per_s"] for rival, r in members.items()}
    return [Panel("Whole models: images per second", groups)] if groups else []


def fill(axis, panel: Panel) -> None:
    """Horizontal bars, a number at the end of each."""
    names = in_order(name for values in panel.groups.values() for name in values)
    height = 0.8 / max(1, len(names))
    for place, name in enumerate(names):
        present = [(row, values[name]) for row, values in enumerate(panel.groups.values()) if name in values]
        bars = axis.barh(
            [row - 0.4 + height * (place + 0.5) for row, _ in present],
            [value for _, value in present],
            height,
            label=name,
            color=COLORS.get(name, OTHER_COLOR),
        )
        axis.bar_label(
            bars, [number(value) + "×" * panel.relative for _, value in present], padding=2, fontsize=7
        )
    if panel.relative:
        axis.axvline(1, color="#888888", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(panel.groups)), list(panel.groups), fontsize=7)
    axis.set_ylim(len(panel.groups) - 0.5, -0.5)  # the first on top
    axis.margins(x=0.12)
    axis.set_title(panel.title, fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), frameon=False)
