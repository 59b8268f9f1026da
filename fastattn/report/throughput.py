"""The tables of `python -m fastattn bench`: networks or modules with each attention, each implementation beside the
other, and the papers' own figures in columns of their own."""

from collections.abc import Iterable, Mapping
from typing import Any

from .facts import protocol_facts
from .papers import DERIVED_NOTE, FIGURES, by_its_authors, printed, printed_in, whose
from .result import Record, attempts
from .rivals import CASE, SPREAD_NOTE, Column, cases, cell, grouped, in_order, ratio_cell, speedup, times_cell
from .table import EMPTY, Table, number, without_empty_columns

MODULES = "modules"
RUNTIMES = "export-runtimes"
PLAIN, COMPILE = "plain", "compile"
COMPILED = " compiled"  # behind the name of a backend, or of the plain network, in a compiled network
YARDSTICKS = ("eager", COMPILE)  # what the fast implementations are compared with
BESIDE = ("images_per_s", "of_plain", "top1", "top5", "voc_map", "coco_ap50")  # what papers print beside sizes
OWN_RECIPE = "A training of its own, not to be compared with the paper's rows."
PEAK_NOTE = "peak MB: the most that PyTorch held during one call, besides weights and images; one measurement."
ENERGY_NOTE = "J/image: of the whole GPU; one measurement, without a spread."
EXPLAINED = [
    "images/s: by the median of the interleaved rounds. of plain: the share of what the same network without attention "
    "does, of an eager one in eager mode, of a compiled one compiled; a vs b: how many times faster a is than b; both "
    "the median of the ratios inside the rounds.",
    "native and triton: the eager network with fastattn's attention in it; compile: the whole network compiled, its "
    "attention of PyTorch's operators; native compiled and triton compiled: the network compiled around fastattn's.",
    "Multiply-adds of an image, as in the papers, counted by torch.utils.flop_counter / 2.",
]
EXPORTED = [
    "images/s: by the median of the interleaved rounds. of plain: the share of what the network without attention does "
    "in the same runtime; a vs b: how many times faster a is than b; both the median of the ratios inside the rounds.",
    "eager, compile and aoti (AOTInductor) run fastattn's kernels, onnxruntime and openvino standard operators.",
    EXPLAINED[-1],
]
ALONE = [
    "images/s and GB/s (x read, out written): by the median of the interleaved rounds. a vs b: how many times faster a "
    "is than b, the median of the ratios inside the rounds.",
    EXPLAINED[-1],
]


def throughput_tables(result: Mapping[str, Any]) -> list[Table]:
    """One table for each TABLE that `bench` has measured, in the order in which they ran."""
    found = attempts(result, "throughput")
    protocol = "; ".join(protocol_facts(result))
    names = in_order(record["table"] for record in found)
    titles = titles_of(result)
    return [
        throughput_table(name, titles.get(name, name), [r for r in found if r["table"] == name], protocol)
        for name in names
    ]


def titles_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The titles of a result's tables by name."""
    return result["fastattn"].get("titles") or {}


def throughput_table(name: str, title: str, found: list[Record], protocol: str) -> Table:
    """A row for each model, attention, variant, batch and size; a column for each implementation and ratio. What no row
    has is left out."""
    case = case_columns(name, found)
    alone = name == MODULES
    units = ("k parameters", 1e3, "M multiply-adds", 1e6) if alone else ("M parameters", 1e6, "G multiply-adds", 1e9)
    rivals = in_order(record["rival"] for record in found)
    exported = name == RUNTIMES
    pairs = compared(rivals, exported)
    columns = (
        *case,
        *(units[0], "paper's M parameters", units[2], "paper's G multiply-adds"),
        *(f"{rival} images/s" for rival in rivals),
        *(f"{rival} of plain" for rival in rivals),
        *(f"{fast} vs {over}" for fast, over in pairs),
        *(f"paper's {FIGURES.get(name, 'of plain')}" for name in BESIDE),
        *("paper", "its authors' top-1 %"),
        *(f"{rival} GB/s" for rival in rivals if alone),
        *(f"{rival} peak MB" for rival in rivals),
        *(f"{rival} J/image" for rival in rivals),
    )
    rows = []
    for members in cases(found, lambda r: tuple(column(r) for column in case.values())):
        some = next(iter(members.values()))
        paper, authors = printed(*identity(some)), by_its_authors(some["model"], some["attention"])
        rows.append(
            (
                *(column(some) for column in case.values()),
                counted(members, "parameters", units[1]),
                as_printed(paper, "parameters_m"),
                counted(members, "multiply_adds", units[3]),
                as_printed(paper, "multiply_adds_g"),
                *(cell(members.get(rival), lambda r: r.get("images_per_s")) for rival in rivals),
                *(of_plain(members.get(rival)) for rival in rivals),
                *(times_cell(members.get(fast), over) for fast, over in pairs),
                *(as_printed(paper, name) for name in BESIDE),
                *(whose(*identity(some)), as_printed(authors or {}, "top1")),
                *(cell(members.get(rival), lambda r: r.get("gb_per_s")) for rival in rivals if alone),
                *(peak_memory(members.get(rival)) for rival in rivals),
                *(joules(members.get(rival)) for rival in rivals),
            )
        )
    explained = ALONE if alone else EXPORTED if exported else EXPLAINED
    notes = [*explained, *([f"Protocol: {protocol}."] if protocol else []), SPREAD_NOTE]
    notes += [PEAK_NOTE] if any(record.get("peak_memory_bytes") for record in found) else []
    notes += [ENERGY_NOTE] if any(joules(record) != EMPTY for record in found) else []
    notes += same_throughout(case, found) + placements(found) + sources(found)
    return without_empty_columns(Table(f"{title} ({name})", columns, rows, notes), keep=case)


def case_columns(name: str, found: list[Record]) -> dict[str, Column]:
    """What tells the rows apart: dtype, format and work only where they differ."""
    case: dict[str, Column] = {} if name == MODULES else {"model": lambda r: str(r["model"])}
    case["attention"] = lambda r: r["attention"]
    if any(record.get("variant") for record in found):
        case["variant"] = lambda r: r.get("variant") or EMPTY
    if name == MODULES:
        case["shape"] = CASE["shape"]
    else:
        case |= {"batch": lambda r: str(r["shape"][0]), "size": lambda r: str(r["shape"][-1])}
    return case | {
        what: CASE[what] for what in ("dtype", "format", "work") if len({record[what] for record in found}) > 1
    }


def same_throughout(case: Mapping[str, Column], found: list[Record]) -> list[str]:
    same = [found[0][what] for what in ("dtype", "format", "work") if what not in case]
    return [f"All rows: {', '.join(same)}."] if same else []


def counted(members: Mapping[str, Record], what: str, unit: float) -> str:
    """A count that every implementation shares."""
    counts = [record[what] / unit for record in members.values() if record.get(what) is not None]
    return (f"{counts[0]:.2f}" if counts[0] >= 1 else number(counts[0])) if counts else EMPTY


def compared(rivals: list[str], exported: bool) -> list[tuple[str, str]]:
    """Who is compared with whom: compiled networks with each other, where there are such of this package's, and
    exported ones with eager."""
    if exported:
        return [(rival, "eager") for rival in rivals if rival != "eager"]
    fast = [rival for rival in rivals if rival not in YARDSTICKS]
    both = [rival for rival in fast if rival.endswith(COMPILED)]
    alone = [rival for rival in fast if rival not in both]
    pairs = [(COMPILE, "eager"), *((rival, "eager") for rival in alone)]
    pairs += [(rival, COMPILE) for rival in both or alone]
    return [(one, over) for one, over in pairs if {one, over} <= {*rivals}]


def plain_like(rival: str) -> str:
    """The plain network that a rival is compared with: a compiled one with a compiled one."""
    return PLAIN + COMPILED if rival == COMPILE or rival.endswith(COMPILED) else PLAIN


def kept(record: Record) -> float | None:
    """The share of its like of a plain network that a measured record keeps, where that is known."""
    over = plain_like(record["rival"])
    return speedup(record, over) if over in record["speedup"] else None


def of_plain(record: Record | None) -> str:
    """The share of the plain network's images per second, which are those of the row without attention."""
    if record is None:
        return EMPTY
    if "failed" not in record and record["attention"] == "none" and record["rival"] in YARDSTICKS:
        return "1.00"
    return ratio_cell(record, plain_like(record["rival"]))


def peak_memory(record: Record | None) -> str:
    peak = (record or {}).get("peak_memory_bytes")
    return number(peak / 1e6 if peak else None)


def joules(record: Record | None) -> str:
    return number(((record or {}).get("telemetry") or {}).get("energy_per_image_j"))


def identity(record: Record) -> tuple[str, str | None, str, str | None]:
    """What a record's row is called among those of the papers."""
    return record["table"], record["model"], record["attention"], record.get("variant")


def as_printed(figures: Mapping[str, Any], name: str) -> str:
    """A paper's figure as it prints it; a share, which is derived, in three digits."""
    value = figures.get(name)
    return EMPTY if value is None else number(value) if name == "of_plain" else str(value)


def placements(found: list[Record]) -> list[str]:
    """Where the attentions are placed, each sentence once."""
    notes = grouped([record for record in found if record.get("note")], lambda record: record["note"])
    return [f"{who((r['model'], r['attention']) for r in some)}: {note}" for note, some in notes.items()]


def sources(found: list[Record]) -> list[str]:
    """Where the papers' figures and those of the attentions' own authors come from, and what is odd about them."""
    papers = dict.fromkeys(paper for record in found for paper in printed_in(*identity(record)))
    notes = [f"paper's: {' '.join([paper.setting, *paper.notes])}" for paper in papers]
    notes += [DERIVED_NOTE] if any("of_plain" in printed(*identity(record)) for record in found) else []
    by_source: dict[str, list[tuple[str, str]]] = {}
    for record in found:
        if row := by_its_authors(record["model"], record["attention"]):
            source = "; ".join(filter(None, (row["source"], row["variant"], row["note"])))
            by_source.setdefault(source, []).append((row["model"], row["attention"]))
    return notes + [f"its authors', {who(pairs)}: {source}. {OWN_RECIPE}" for source, pairs in by_source.items()]


def who(pairs: Iterable[tuple[str | None, str]]) -> str:
    """Models and attentions in words: "none, se in resnet50, resnet101; eca in repvgg_a0"."""
    by_attentions: dict[str, list[str]] = {}
    by_model: dict[str, list[str]] = {}
    for model, attention in dict.fromkeys(pairs):
        by_model.setdefault(model or "", []).append(attention)
    for model, attentions in by_model.items():
        by_attentions.setdefault(", ".join(attentions), []).append(model)
    return "; ".join(f"{attentions} in {', '.join(models)}" for attentions, models in by_attentions.items())
