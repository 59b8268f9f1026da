"""The tables of a result: asked and measured, throughput, each attention's, models, trainings, and what failed."""

from typing import Any

from .facts import on_gpu, protocol
from .quality import not_measured_table, telemetry_table
from .result import Record, attempts, records
from .rivals import CASE, COMPOSED_NOTES, LAUNCH, NOTES, Column, cases, cell, in_order, ratio_cell, rivals_table
from .rivals import spread_notes as on_spread
from .table import EMPTY, Table, number
from .throughput import throughput_tables

ONE_MEASUREMENT = "One measurement each, over all of its cases: the spreads are in the cases' own tables."


def tables(result: dict[str, Any]) -> list[Table]:
    """Every table that a result has rows for."""
    built = [
        summary_table(result),
        *throughput_tables(result),
        module_table(result),
        tuned_table(result),
        copy_table(result),
        precision_table(result),
        attention_table(result),
        pyramid_table(result),
        lga_table(result),
        acp_table(result),
        cat_table(result),
        model_table(result),
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


def module_table(result: dict[str, Any]) -> Table:
    """SCSA as a module: every rival's milliseconds, and how many times faster the fast ones are."""
    return rivals_table("SCSA as a module", attempts(result, "module"), CASE)


def tuned_table(result: dict[str, Any]) -> Table:
    """SCSA as a module on a GPU, where torch.compile searches for the fastest kernels."""
    return rivals_table("SCSA beside max-autotune", attempts(result, "tuned"), CASE)


def copy_table(result: dict[str, Any]) -> Table:
    """SCSA's time as a multiple of a plain copy's."""
    return rivals_table("SCSA beside out.copy_(x)", attempts(result, "copy"), CASE)


def precision_table(result: dict[str, Any]) -> Table:
    """The same fast path in float32 and in bfloat16."""
    case = {name: column for name, column in CASE.items() if name != "dtype"}
    return rivals_table("SCSA in two precisions", attempts(result, "precision"), case)


def attention_table(result: dict[str, Any]) -> Table:
    """CFSAM's attention alone, in parts."""
    case: dict[str, Column] = {
        "q, k, v": lambda r: f"({r['shape'][0]}, {r['shape'][1]}, {r['heads']} × {r['shape'][2] // r['heads']})",
        "parts": lambda r: str(r["parts"]),
        "dtype": CASE["dtype"],
        "work": CASE["work"],
    }
    notes = [
        NOTES[0],
        "GFLOP/s: multiplications and additions of the matrix products, two forward and five backward, by that time.",
        "The explicit softmax, eager's and compile's, is left out where its scores alone would not fit.",
    ]
    found = attempts(result, "attention")
    return rivals_table("Partitioned attention", found, case, ("GFLOP/s", "gflop_per_s"), notes)


def pyramid_table(result: dict[str, Any]) -> Table:
    """CFSAM as a module, and what of it is left out."""
    case: dict[str, Column] = {
        "batch": lambda r: str(r["shape"][0]),
        "tokens": lambda r: str(r["shape"][1]),
        "parts of it": lambda r: r["ablation"],
        "dtype": CASE["dtype"],
        "format": CASE["format"],
        "work": CASE["work"],
    }
    notes = [NOTES[0], "LFE: local extraction; GFE: the transformer block over all levels; fusion of both."]
    found = attempts(result, "pyramid")
    return rivals_table("CFSAM at SSD300's levels", found, case, ("images/s", "images_per_s"), notes)


def lga_table(result: dict[str, Any]) -> Table:
    """LGA as a module, in both contractions."""
    case: dict[str, Column] = {
        "shape": CASE["shape"],
        "heads": lambda r: str(r["heads"]),
        "contraction": lambda r: r["contraction"],
        "dtype": CASE["dtype"],
        "format": CASE["format"],
        "work": CASE["work"],
    }
    notes = [NOTES[0], "paper: equation 10; released: what the author's code computes, without queries and keys."]
    return rivals_table("LGA as a module", attempts(result, "lga"), case, ("images/s", "images_per_s"), notes)


def acp_table(result: dict[str, Any]) -> Table:
    """ACP as a module, by the number of its layers."""
    case: dict[str, Column] = {
        "shape": CASE["shape"],
        "layers": lambda r: str(r["layers"]),
        "dtype": CASE["dtype"],
        "format": CASE["format"],
        "work": CASE["work"],
    }
    found = attempts(result, "acp")
    return rivals_table("ACP as a module", found, case, ("images/s", "images_per_s"), COMPOSED_NOTES)


def cat_table(result: dict[str, Any]) -> Table:
    """CAT as a module, by its tokens and concepts."""
    case: dict[str, Column] = {
        "tokens": CASE["shape"],
        "concepts": lambda r: str(r["concepts"]),
        "dtype": CASE["dtype"],
        "work": CASE["work"],
    }
    found = attempts(result, "cat")
    return rivals_table("CAT as a module", found, case, ("images/s", "images_per_s"), COMPOSED_NOTES)


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


def model_table(result: dict[str, Any]) -> Table:
    """Whole models: images per second of each rival, and its share of the plain model's."""
    found = attempts(result, "model")
    gpu = any("launch" in record for record in found)
    case: dict[str, Column] = {
        "model": lambda r: r["model"],
        "attention": placed,
        "batch": lambda r: str(r["shape"][0]),
        "format": CASE["format"],
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
    return Table("Whole models", columns, rows, notes + on_spread(found))


def placed(record: Record) -> str:
    """The attention that a model's rivals have, and the levels that it is on."""
    levels = record.get("levels")
    operation = record.get("operation", "scsa")
    name = "ACP + CAT" if operation == "interaction" else operation.upper()
    return name + (f" on {levels} levels" if levels else "")
