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
    """Every table that a result has rows for: asked and measured, each attention's, models, trainings."""
    built = [
        summary_table(result),
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
    ]
    return [table for table in built if table.rows]


def summary_table(result: dict[str, Any]) -> Table:
    """What was asked of the fast path and what was measured."""
    other = "least" if on_gpu(result) else "median"
    rows: list[tuple[str, ...]] = []
    for entry in result["fastattn"].get("summary", ()):
        relation = entry["relation"].replace(">=", "≥").replace("<=", "≤")
        asked = EMPTY if entry["asked"] is None else f"{relation} {entry['asked']:g}"
        if entry["measured"] is None:
            rows.append((entry["what"], entry["unit"], asked, "not measured", EMPTY, EMPTY))
            continue
        worst, eager = entry.get("worst"), entry.get("eager")
        remark = f"worst {number(worst['value'])}: {worst['case']}" if worst else EMPTY
        remark = f"eager: {number(eager)}" if eager is not None else remark
        measured = number(entry["measured"]) + ("" if entry.get("met", True) else " (missed)")
        rows.append((entry["what"], entry["unit"], asked, measured, number(entry[other]), remark))
    columns = ("what", "unit", "asked", "measured", f"by {other}", "remark")
    return Table("Asked and measured", columns, rows, [protocol(result)])


CASE: dict[str, Callable[[Record], str]] = {
    "shape": lambda r: "(" + ", ".join(map(str, r["shape"])) + ")",
    "dtype": lambda r: r["dtype"],
    "format": lambda r: r["format"],
    "work": lambda r: r["work"],
}
LAUNCH = {"launch": lambda r: r["launch"]}  # launches or graph, on a GPU alone
# What the other rivals are compared with.
YARDSTICKS = ("eager", "compile", "max-autotune", "copy", "float32", "sdpa copies", "sdpa view", "composed")


def module_table(result: dict[str, Any]) -> Table:
    """SCSA as a module: every rival's milliseconds, and how many times faster the fast ones are."""
    return rivals_table("SCSA as a module", records(result, "module"), CASE)


def tuned_table(result: dict[str, Any]) -> Table:
    """SCSA as a module on a GPU, where torch.compile searches for the fastest kernels."""
    return rivals_table("SCSA beside max-autotune", records(result, "tuned"), CASE)


def copy_table(result: dict[str, Any]) -> Table:
    """SCSA's time as a multiple of a plain copy's."""
    return rivals_table("SCSA beside out.copy_(x)", records(result, "copy"), CASE)


def precision_table(result: dict[str, Any]) -> Table:
    """The same fast path in float32 and in bfloat16."""
    case = {name: column for name, column in CASE.items() if name != "dtype"}
    return rivals_table("SCSA in two precisions", records(result, "precision"), case)


def attention_table(result: dict[str, Any]) -> Table:
    """CFSAM's attention alone, in parts."""
    case = {
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
    found = records(result, "attention")
    return rivals_table("Partitioned attention", found, case, ("GFLOP/s", "gflop_per_s"), notes)


def pyramid_table(result: dict[str, Any]) -> Table:
    """CFSAM as a module, and what of it is left out."""
    case = {
        "batch": lambda r: str(r["shape"][0]),
        "tokens": lambda r: str(r["shape"][1]),
        "parts of it": lambda r: r["ablation"],
        "dtype": CASE["dtype"],
        "format": CASE["format"],
        "work": CASE["work"],
    }
    notes = [NOTES[0], "LFE: local extraction; GFE: the transformer block over all levels; fusion of both."]
    found = records(result, "pyramid")
    return rivals_table("CFSAM at SSD300's levels", found, case, ("images/s", "images_per_s"), notes)


def lga_table(result: dict[str, Any]) -> Table:
    """LGA as a module, in both contractions."""
    case = {
        "shape": CASE["shape"],
        "heads": lambda r: str(r["heads"]),
        "contraction": lambda r: r["contraction"],
        "dtype": CASE["dtype"],
        "format": CASE["format"],
        "work": CASE["work"],
    }
    notes = [NOTES[0], "paper: equation 10; released: what the author's code computes, without queries and keys."]
    return rivals_table("LGA as a module", records(result, "lga"), case, ("images/s", "images_per_s"), notes)


def acp_table(result: dict[str, Any]) -> Table:
    """ACP as a module, by the number of its layers."""
    case = {
        "shape": CASE["shape"],
        "layers": lambda r: str(r["layers"]),
        "dtype": CASE["dtype"],
        "format": CASE["format"],
        "work": CASE["work"],
    }
    return rivals_table("ACP as a module", records(result, "acp"), case, ("images/s", "images_per_s"), COMPOSED_NOTES)


def cat_table(result: dict[str, Any]) -> Table:
    """CAT as a module, by its tokens and concepts."""
    case = {
        "tokens": CASE["shape"],
        "concepts": lambda r: str(r["concepts"]),
        "dtype": CASE["dtype"],
        "work": CASE["work"],
    }
    return rivals_table("CAT as a module", records(result, "cat"), case, ("images/s", "images_per_s"), COMPOSED_NOTES)


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


def rivals_table(
    title: str,
    found: list[Record],
    case: dict[str, Callable[[Record], str]],
    rate: tuple[str, str] = ("GB/s", "gb_per_s"),
    notes: list[str] | None = None,
) -> Table:
    """One row for each case: every rival's milliseconds, the fast ones' ratios and rates (a name and its key)."""
    gpu = any("launch" in record for record in found)
    case = case | (LAUNCH if gpu else {})
    names = in_order(record["rival"] for record in found)
    plain = [name for name in names if name in YARDSTICKS]
    fast = [name for name in names if name not in YARDSTICKS]
    pairs = [(name, over) for name in fast for over in plain if not (gpu and over == "copy")]
    rows = []
    for members in cases(found, lambda r: tuple(column(r) for column in case.values())):
        some = next(iter(members.values()))
        row = [column(some) for column in case.values()]
        row += [number(duration(members[name])) if name in members else EMPTY for name in names]
        row += [times(ratio(members.get(name), over, inverse=over == "copy")) for name, over in pairs]
        row += [number(members[name][rate[1]]) if name in members else EMPTY for name in fast]
        if gpu:
            row += [of_copy(members.get(name)) for name in fast]
        rows.append(tuple(row))
    columns = (
        *case,
        *(f"{name} {'µs' if gpu else 'ms'}" for name in names),
        *(f"{name} time / copy time" if over == "copy" else f"{name} vs {over}" for name, over in pairs),
        *(f"{name} {rate[0]}" for name in fast),
        *(f"{name} / copy GB/s" for name in fast if gpu),
    )
    return Table(title, columns, rows, GPU_NOTES if gpu else notes or NOTES)


NOTES = [
    "ms: the least of the interleaved rounds. a vs b: how many times faster a is than b.",
    "GB/s: what any implementation moves (forward: x and out; with backward: five times x) by that time.",
]
COMPOSED_NOTES = [NOTES[0], "composed: torch's own operators, rearranged by the same algebra."]
GPU_NOTES = [
    "µs: the median of the interleaved rounds, each of many calls one behind the other between two CUDA events. The",
    "L2 is emptied before a round; then a call that is not timed brings back what fits. launches: every operator is",
    "launched from Python (max-autotune replays CUDA graphs of its own); graph: a CUDA graph is replayed. a vs b: how",
    "many times faster a is than b. GB/s: what any implementation moves (forward: x and out; with backward: five times",
    "x) by that time; the copy reads x and writes out.",
]


def model_table(result: dict[str, Any]) -> Table:
    """Whole models: images per second of each rival, and its share of the plain model's."""
    found = records(result, "model")
    gpu = any("launch" in record for record in found)
    case: dict[str, Callable[[Record], str]] = {
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
        row += [f"{members[name]['images_per_s']:.1f}" if name in members else EMPTY for name in names]
        row += [ratio(members.get(name), "plain") for name in others]
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
    return Table("Whole models", columns, rows, notes)


def placed(record: Record) -> str:
    """The attention that a model's rivals have, and the levels that it is on."""
    levels = record.get("levels")
    operation = record.get("operation", "scsa")
    name = "ACP + CAT" if operation == "interaction" else operation.upper()
    return name + (f" on {levels} levels" if levels else "")


def on_gpu(result: dict[str, Any]) -> bool:
    """Whether the rivals ran on a GPU."""
    return result["fastattn"].get("device") == "cuda"


def protocol(result: dict[str, Any]) -> str:
    """The machine, the versions, and how the numbers came about, in two sentences."""
    machine = result.get("machine_info", {})
    versions = machine.get("versions", {})
    commit = (result.get("commit_info") or {}).get("id")
    gpu = on_gpu(result)
    names = ("torch", "triton", "fastattn") if gpu else ("torch", "fastattn")
    facts = [
        *(gpu_facts(machine) if gpu else cpu_facts(machine)),
        *(f"{name} {versions[name]}" for name in names if name in versions),
        *([f"commit {commit[:12]}"] if commit and commit != "unknown" else []),
    ]
    if gpu:
        return f"{'; '.join(facts)}. Rivals timed in turns, median of the rounds."
    memory = machine.get("freed_memory", "?")
    return (
        f"{'; '.join(facts)}. Rivals timed in turns, least of the rounds; memory that they free is {memory}."
    )


def cpu_facts(machine: dict[str, Any]) -> list[str]:
    return [
        machine.get("cpu", "unknown CPU"),
        f"threads: {machine.get('threads', '?')}",
        f"native: {machine.get('isa', '?')}",
    ]


def gpu_facts(machine: dict[str, Any]) -> list[str]:
    details = machine.get("gpu_details", {})
    clocks = ", ".join(f"{name} {mhz:g} MHz" for name, mhz in details.get("clocks_mhz", {}).items())
    return [
        machine.get("gpu") or "unknown GPU",
        *([f"driver {details['driver']}"] if details.get("driver") else []),
        *([f"clocks after the rounds: {clocks}"] if clocks else []),
        *([f"CUDA {details['cuda']}"] if details.get("cuda") else []),
    ]


def cases(found: Iterable[Record], key: Callable[[Record], object]) -> list[dict[str, Record]]:
    """The records of the same case together, by rival, in the order in which they ran."""
    grouped: dict[object, dict[str, Record]] = {}
    for record in found:
        grouped.setdefault(key(record), {})[record["rival"]] = record
    return list(grouped.values())


def in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def duration(record: Record) -> float:
    """Milliseconds, the least; on a GPU microseconds, the median."""
    return record["median_ms"] * 1e3 if "launch" in record else record["least_ms"]


def of_copy(record: Record | None) -> str:
    return number(record["share_of_copy"]) if record and record.get("share_of_copy") else EMPTY


def speedup(record: Record, over: str) -> float:
    """How many times faster a rival is than another: by the least, on a GPU by the median."""
    return record["speedup"][over]["median" if "launch" in record else "least"]


def ratio(record: Record | None, over: str, *, inverse: bool = False) -> str:
    """How many times faster a rival is than another, or with `inverse` how many times slower."""
    if record is None or over not in record["speedup"]:
        return EMPTY
    found = speedup(record, over)
    return number(1 / found if inverse else found)


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
