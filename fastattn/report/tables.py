"""The tables of a result: asked and measured, throughput, each suite's, trainings, and what failed."""

from collections.abc import Mapping
from typing import Any

from .facts import on_gpu, protocol
from .quality import not_measured_table, telemetry_table
from .result import Record, attempts, records, suites
from .rivals import CASE, LAUNCH, Column, cases, cell, columns_of, in_order, ratio_cell, rivals_table
from .rivals import spread_notes as on_spread
from .table import EMPTY, Table, number
from .throughput import throughput_tables

ONE_MEASUREMENT = "One measurement each, over all of its cases: the spreads are in the cases' own tables."


def tables(result: dict[str, Any]) -> list[Table]:
    """Every table that a result has rows for."""
    built = [
        summary_table(result),
        *throughput_tables(result),
        *suite_tables(result),
        convergence_table(result),
        not_measured_table(result),
        telemetry_table(result),
    ]
    return [table for table in built if table.rows]


def summary_table(result: dict[str, Any]) -> Table:
    """What was asked of the fast path and what was measured."""
    other = "least" if on_gpu(result) else "median"
    rows: list[tuple[str, ...]] = []
    for entry in result["fastattn"].get("summary") or ():
        relation = entry["relation"].replace(">=", "≥").replace("<=", "≤")
        asked = EMPTY if entry.get("asked") is None else f"{relation} {entry['asked']:g}"
        if entry.get("measured") is None:
            rows.append((entry["what"], entry["unit"], asked, "not measured", EMPTY, EMPTY))
            continue
        worst, eager = entry.get("worst"), entry.get("eager")
        remark = f"worst {number(worst['value'])}: {worst['case']}" if worst else EMPTY
        remark = f"eager: {number(eager)}" if eager is not None else remark
        measured = number(entry["measured"]) + ("" if entry.get("met", True) else " (missed)")
        rows.append((entry["what"], entry["unit"], asked, measured, number(entry.get(other)), remark))
    columns = ("what", "unit", "asked", "measured", f"by {other}", "remark")
    return Table("Asked and measured", columns, rows, [protocol(result), ONE_MEASUREMENT])


def suite_tables(result: Mapping[str, Any]) -> list[Table]:
    """A table for each suite that the result describes."""
    return [suite_table(result, name) for name in suites(result)]


def suite_table(result: Mapping[str, Any], name: str) -> Table:
    suite = suites(result)[name]
    return (model_table if suite.get("models") else rivals_table)(suite, attempts(result, name))


def convergence_table(result: dict[str, Any]) -> Table:
    """Trainings that differ in who computes the attention."""
    rows: list[tuple[str, ...]] = [
        (
            r["operation"].upper(),
            r["backend"],
            str(len(r["losses"])),
            number(r["losses"][0]),
            number(r["losses"][-1]),
            f"{100 * r['accuracy']:.1f}",
        )
        for r in records(result, "convergence")
    ]
    columns = ("attention", "backend", "steps", "first loss", "last loss", "% right in the end")
    notes = ["A small network on 8 x 8 digits, float32: the same weights, batches and steps for each backend."]
    return Table("Training on digits", columns, rows, notes)


def model_table(suite: Mapping[str, Any], found: list[Record]) -> Table:
    """Whole models: images per second of each rival, and its share of the plain model's."""
    gpu = any("launch" in record for record in found)
    case: dict[str, Column] = {
        **columns_of(suite),
        **({"dtype": CASE["dtype"], **LAUNCH} if gpu else {}),
        **({"work": CASE["work"]} if any(r["work"] != "forward" for r in found) else {}),
    }
    names = in_order(record["rival"] for record in found)
    others = [name for name in names if name != "plain"]
    rows = []
    for members in cases(found, lambda r: tuple(column(r) for column in case.values())):
        row = [column(next(iter(members.values()))) for column in case.values()]
        row += [cell(members.get(name), lambda r: r.get("images_per_s")) for name in names]
        row += [ratio_cell(members.get(name), "plain") for name in others]
        rows.append(tuple(row))
    columns = (
        *case,
        *(f"{name} images/s" for name in names),
        *(f"{name} / plain" for name in others),
    )
    sizes = in_order(f"{r['shape'][2]} x {r['shape'][3]}" for r in found)
    what = "images of noise" if gpu else "photographs, float32"
    how = "" if "work" in case else ", inference"
    notes = [f"{' and '.join(sizes)} {what}{how}; plain: the model without attention, others: with it."]
    if any(r.get("levels") for r in found):
        notes.append("Of a detector: backbone, attention and head, without the boxes' decoding.")
    return Table(suite["title"], columns, rows, notes + on_spread(found))
