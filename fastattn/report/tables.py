"""The tables of a result, for the screen and for Markdown."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .result import records

Record = dict[str, Any]
EMPTY = "-"


@dataclass(frozen=True)
class Table:
    """A title, column names, rows of text, and notes that explain the numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)


def tables(result: dict[str, Any]) -> list[Table]:
    """Every table that a result has rows for: asked and measured, modules, precision, models."""
    built = [
        summary_table(result),
        module_table(result),
        copy_table(result),
        precision_table(result),
        model_table(result),
    ]
    return [table for table in built if table.rows]


def summary_table(result: dict[str, Any]) -> Table:
    """What was asked of the fast path and what was measured."""
    rows: list[tuple[str, ...]] = []
    for entry in result["fastattn"].get("summary", ()):
        asked = f"{entry['relation'].replace('>=', '≥').replace('<=', '≤')} {entry['asked']:g}"
        if entry["measured"] is None:
            rows.append((entry["what"], entry["unit"], asked, "not measured", EMPTY, EMPTY))
            continue
        worst, eager = entry.get("worst"), entry.get("eager")
        remark = f"worst {number(worst['value'])}: {worst['case']}" if worst else EMPTY
        remark = f"eager: {number(eager)}" if eager is not None else remark
        measured = number(entry["measured"]) + ("" if entry["met"] else " (missed)")
        rows.append((entry["what"], entry["unit"], asked, measured, number(entry["median"]), remark))
    columns = ("what", "unit", "asked", "measured", "by median", "remark")
    return Table("Asked and measured", columns, rows, [protocol(result)])


CASE: dict[str, Callable[[Record], str]] = {
    "shape": lambda r: "(" + ", ".join(map(str, r["shape"])) + ")",
    "dtype": lambda r: r["dtype"],
    "format": lambda r: r["format"],
    "work": lambda r: r["work"],
}
YARDSTICKS = ("eager", "compile", "copy", "float32")  # what the other rivals are compared with


def module_table(result: dict[str, Any]) -> Table:
    """SCSA as a module: every rival's milliseconds, and how many times faster the fast ones are."""
    return rivals_table("SCSA as a module", records(result, "module"), CASE)


def copy_table(result: dict[str, Any]) -> Table:
    """SCSA's time as a multiple of a plain copy's."""
    return rivals_table("SCSA beside out.copy_(x)", records(result, "copy"), CASE)


def precision_table(result: dict[str, Any]) -> Table:
    """The same fast path in float32 and in bfloat16."""
    case = {name: column for name, column in CASE.items() if name != "dtype"}
    return rivals_table("SCSA in two precisions", records(result, "precision"), case)


def rivals_table(title: str, found: list[Record], case: dict[str, Callable[[Record], str]]) -> Table:
    """One row for each case: every rival's milliseconds, the fast ones' ratios and bandwidths."""
    names = in_order(record["rival"] for record in found)
    plain = [name for name in names if name in YARDSTICKS]
    fast = [name for name in names if name not in YARDSTICKS]
    pairs = [(name, over) for name in fast for over in plain]
    rows = []
    for members in cases(found, lambda r: tuple(column(r) for column in case.values())):
        some = next(iter(members.values()))
        row = [column(some) for column in case.values()]
        row += [number(members[name]["least_ms"]) if name in members else EMPTY for name in names]
        row += [times(ratio(members.get(name), over, inverse=over == "copy")) for name, over in pairs]
        row += [number(members[name]["gb_per_s"]) if name in members else EMPTY for name in fast]
        rows.append(tuple(row))
    columns = (
        *case,
        *(f"{name} ms" for name in names),
        *(f"{name} time / copy time" if over == "copy" else f"{name} vs {over}" for name, over in pairs),
        *(f"{name} GB/s" for name in fast),
    )
    notes = [
        "ms: the least of the interleaved rounds. a vs b: how many times faster a is than b.",
        "GB/s: what any implementation moves (forward: x and out; with backward: five times x) by that time.",
    ]
    return Table(title, columns, rows, notes)


def model_table(result: dict[str, Any]) -> Table:
    """Whole models: images per second of each rival, and its share of the plain model's."""
    found = records(result, "model")
    names = in_order(record["rival"] for record in found)
    others = [name for name in names if name != "plain"]
    rows = []
    for members in cases(found, lambda r: (r["model"], r["shape"][0], r["format"])):
        first = next(iter(members.values()))
        row = [first["model"], str(first["shape"][0]), first["format"]]
        row += [f"{members[name]['images_per_s']:.1f}" if name in members else EMPTY for name in names]
        row += [ratio(members.get(name), "plain") for name in others]
        rows.append(tuple(row))
    columns = (
        "model",
        "batch",
        "format",
        *(f"{name} images/s" for name in names),
        *(f"{name} / plain" for name in others),
    )
    notes = [
        "224 x 224 photographs, float32, inference; plain: the model without attention, others: with SCSA."
    ]
    return Table("Whole models", columns, rows, notes)


def protocol(result: dict[str, Any]) -> str:
    """The machine, the versions, and how the numbers came about, in two sentences."""
    machine = result.get("machine_info", {})
    versions = machine.get("versions", {})
    commit = (result.get("commit_info") or {}).get("id")
    facts = [
        machine.get("cpu", "unknown CPU"),
        f"threads: {machine.get('threads', '?')}",
        f"native: {machine.get('isa', '?')}",
        *(f"{name} {versions[name]}" for name in ("torch", "fastattn") if name in versions),
        *([f"commit {commit[:12]}"] if commit and commit != "unknown" else []),
    ]
    memory = machine.get("freed_memory", "?")
    return (
        f"{'; '.join(facts)}. Rivals timed in turns, least of the rounds; memory that they free is {memory}."
    )


def cases(found: Iterable[Record], key: Callable[[Record], object]) -> list[dict[str, Record]]:
    """The records of the same case together, by rival, in the order in which they ran."""
    grouped: dict[object, dict[str, Record]] = {}
    for record in found:
        grouped.setdefault(key(record), {})[record["rival"]] = record
    return list(grouped.values())


def in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def ratio(record: Record | None, over: str, *, inverse: bool = False) -> str:
    """How many times faster a rival is than another, or with `inverse` how many times slower."""
    if record is None or over not in record["speedup"]:
        return EMPTY
    speedup = record["speedup"][over]["least"]
    return number(1 / speedup if inverse else speedup)


def times(text: str) -> str:
    return text if text == EMPTY else text + "×"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"


def to_markdown(table: Table) -> str:
    """A heading, the table, and its notes."""
    numeric = numeric_columns(table)
    lines = [f"### {table.title}", ""]
    lines.append("| " + " | ".join(table.columns) + " |")
    lines.append("| " + " | ".join("---:" if right else "---" for right in numeric) + " |")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([*lines, "", *table.notes]) + "\n"


def to_text(table: Table) -> str:
    """The same for a terminal: columns padded, numbers to the right."""
    numeric = numeric_columns(table)
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]

    def line(cells: Iterable[str]) -> str:
        padded = (
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, line(table.columns), rule, *map(line, table.rows), *table.notes])


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers alone (with × or a remark behind), or nothing."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    return [all(cell == EMPTY or cell[:1].isdigit() for cell in column) for column in columns]
