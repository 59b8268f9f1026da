"""What a record and a result's own part have to look like; each check returns what is wrong in words, or nothing."""

import re
from collections.abc import Callable, Mapping
from typing import Any

CASE = ("rival", "shape", "format", "dtype", "work")
TIMES = ("least_ms", "median_ms", "quartiles_ms")
THROUGHPUT = ("table", "model", "attention")  # what else its tables tell its records by
ALONE = {  # suites without rivals
    "python": ("shape",),
    "traffic": ("shape",),
    "memory": ("shape",),
    "convergence": ("operation", "backend", "losses", "accuracy"),
    "tools": ("operation", "measured"),
}
MODEL_AXES = 4
MAY_BE_NULL = {"throughput": ("model",)}  # of these: that of a module
TEXTS = (
    *(
        "suite",
        "rival",
        "dtype",
        "format",
        "work",
        "launch",
        "model",
        "attention",
        "variant",
        "table",
        "operation",
        "note",
    ),
    *("backend", "placed"),
)
NUMBERS = (
    *("parameters", "multiply_adds", "images_per_s", "bytes_moved_at_least", "gb_per_s", "copy_gb_per_s"),
    *("share_of_copy", "gflop_per_s", "relative_error", "accuracy", "peak_memory_bytes"),
)
LISTS = ("options", "label", "rate", "notes", "yardsticks")  # of a suite
KEY = re.compile(r"[^.]+|shape\.\d")  # of a record, or a part of its shape
CLOCKS = ("sm_mhz", "memory_mhz", "cpu_mhz")

Facts = Mapping[str, Any]


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_list_of(kind: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, list) and all(map(kind, value))


def is_option(value: object) -> bool:
    """Whether it may tell cases apart, and so stand in a cell."""
    return is_text(value) or is_size(value) or is_list_of(is_text, value) or is_list_of(is_size, value)


def is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def has_numbers(value: object, names: tuple[str, ...]) -> bool:
    """Whether it is an object with a number under each of these names."""
    return isinstance(value, Mapping) and all(is_number(value.get(name)) for name in names)


def first_that_is_no(kind: Callable[[object], bool], facts: Facts, names: tuple[str, ...]) -> str | None:
    """Of these names the first whose value is there, is not null, and is of another kind."""
    return next((name for name in names if facts.get(name) is not None and not kind(facts[name])), None)


def record_fault(record: Facts, suites: Mapping[str, Facts]) -> str | None:
    """Which keys a record lacks, or which of them is of another kind; `suites` are those that its result describes."""
    if record.get("suite") is not None and not is_text(record["suite"]):
        return f"has a suite that is no text: {record['suite']!r}"
    suite = str(record.get("suite"))
    known = suites.get(suite, {})
    if missing := [name for name in needed(suite, record, known) if name not in record]:
        return f"lacks {', '.join(missing)}"
    if suite not in (*suites, *ALONE, "throughput"):
        return f"is of the suite {suite}, which the result does not describe"
    shape, speedup = record.get("shape", [1]), record.get("speedup", {})
    if not (is_list_of(is_size, shape) and shape):
        return f"has a shape that is no list of whole numbers: {shape!r}"
    if suite not in ALONE and len(shape) < (axes := axes_of(known)):
        return f"has a shape of fewer than {axes} axes: {shape!r}"
    if not (isinstance(speedup, Mapping) and all(map(is_ratio, speedup.values()))):
        return "has a speedup that is not {other: {least, median}}, perhaps with two quartiles"
    present = [name for name in needed(suite, record, known) if name not in MAY_BE_NULL.get(suite, ())]
    if name := next(
        (name for name in (*present, "launch") if name not in TIMES and record.get(name, "") is None), None
    ):
        return f"has null as its {name}"
    options = (*known.get("options", ()), *keys_of(known))
    for kind, names, what in (
        (is_text, TEXTS, "text"),
        (is_text if known.get("models") else is_option, known.get("options", ()), "text"),
        (is_option, options, "text or whole number"),
        (is_number, NUMBERS, "number"),
    ):
        if name := first_that_is_no(kind, record, names):
            return f"has a {name} that is no {what}: {record[name]!r}"
    if suite == "convergence" and not (is_list_of(is_number, record["losses"]) and record["losses"]):
        return "has losses that are no list of numbers"
    return telemetry_fault(record.get("telemetry"))


def needed(suite: str, record: Facts, known: Facts) -> tuple[str, ...]:
    if suite in ALONE:
        return ALONE[suite]
    timed = () if record.get("failed") is not None else (*TIMES, "speedup")
    own = THROUGHPUT if suite == "throughput" else keys_of(known)
    return tuple(dict.fromkeys(("suite", *CASE, *own, *timed)))


def keys_of(suite: Facts) -> tuple[str, ...]:
    """The keys of records that a suite's columns read."""
    return tuple(key.partition(".")[0] for key in suite.get("columns", {}).values())


def axes_of(suite: Facts) -> int:
    """How many axes a suite's columns read of a shape, at least."""
    parts = [int(key.partition(".")[2]) + 1 for key in suite.get("columns", {}).values() if "." in key]
    return max([MODEL_AXES if suite.get("models") else 1, *parts])


def is_ratio(ratio: object) -> bool:
    if not isinstance(ratio, Mapping) or not has_numbers(ratio, ("least", "median")):
        return False
    quartiles = ratio.get("quartiles", [0, 0])
    return is_list_of(is_number, quartiles) and len(quartiles) == 2


def telemetry_fault(seen: object) -> str | None:
    """What is wrong with what the hardware did meanwhile."""
    if seen is None:
        return None
    if not isinstance(seen, Mapping):
        return "has a telemetry that is no object"
    if name := first_that_is_no(lambda value: has_numbers(value, ("least", "median", "most")), seen, CLOCKS):
        return f"has a telemetry whose {name} is not {{least, median, most}}"
    if first_that_is_no(lambda value: has_numbers(value, ("most",)), seen, ("temperature_c",)):
        return "has a telemetry whose temperature_c is not {most}"
    if name := first_that_is_no(is_number, seen, ("power_w", "energy_per_image_j", "other_processes")):
        return f"has a telemetry whose {name} is no number"
    if first_that_is_no(lambda value: is_list_of(is_text, value), seen, ("clock_reductions",)):
        return "has a telemetry whose clock_reductions are no list of texts"
    return None


def result_fault(result: Facts) -> str | None:
    """What is wrong with what a result says about itself: the machine, the commit, the protocol, the suites, the
    summary."""
    ours, machine = result["fastattn"], result.get("machine_info") or {}
    if not all(isinstance(result.get(name) or {}, Mapping) for name in ("machine_info", "commit_info")):
        return "has a machine_info or commit_info that is no object"
    if name := first_that_is_no(is_text, result.get("commit_info") or {}, ("id",)):
        return f"has a commit_info whose {name} is no text"
    if name := first_that_is_no(is_text, machine, ("cpu", "gpu", "system", "python", "isa", "freed_memory")):
        return f"has a machine_info whose {name} is no text"
    details = machine.get("gpu_details") or {}
    if not isinstance(details, Mapping) or not isinstance(machine.get("versions") or {}, Mapping):
        return "has a machine_info whose versions or gpu_details are no object"
    clocks = details.get("clocks_mhz") or {}
    if not isinstance(clocks, Mapping) or not has_numbers(clocks, tuple(clocks)):
        return "has a machine_info whose gpu_details.clocks_mhz are no numbers by name"
    if not isinstance(ours.get("protocol") or {}, Mapping):
        return "has a protocol that is no object"
    if not is_list_of(is_text, ours.get("tables") or []):
        return "has tables that are no list of texts"
    if fault := suites_fault(ours.get("suites", {}), ours.get("titles", {})):
        return fault
    summary = ours.get("summary") or []
    if not isinstance(summary, list):
        return "has a summary that is no list"
    return next((f"has a summary entry that {fault}" for fault in map(entry_fault, summary) if fault), None)


def suites_fault(suites: object, titles: object) -> str | None:
    """What is wrong with what a result says about its suites, and with the titles of its tables."""
    if not isinstance(titles, Mapping) or not all(map(is_text, titles.values())):
        return "has titles that are no texts by name"
    if not isinstance(suites, Mapping):
        return "has suites that are no object"
    for name, suite in suites.items():
        if not isinstance(suite, Mapping) or not is_text(suite.get("title")):
            return f"has a suite {name} without a title"
        columns = suite.get("columns")
        if not isinstance(columns, Mapping) or not all(is_text(key) and KEY.fullmatch(key) for key in columns.values()):
            return f"has a suite {name} whose columns are no keys by title"
        if what := first_that_is_no(lambda value: is_list_of(is_text, value), suite, LISTS):
            return f"has a suite {name} whose {what} are no list of texts"
        if len(suite.get("rate", (1, 2))) != 2:
            return f"has a suite {name} whose rate is not [unit, key]"
        if what := first_that_is_no(is_text, suite, ("chart", "readme")):
            return f"has a suite {name} whose {what} is no text"
    return None


def entry_fault(entry: object) -> str | None:
    """What is wrong with an entry of the summary."""
    if not isinstance(entry, Mapping):
        return "is no object"
    if name := next((name for name in ("what", "unit", "relation") if not is_text(entry.get(name))), None):
        return f"has no {name}"
    if name := first_that_is_no(is_number, entry, ("asked", "measured", "median", "least", "eager")):
        return f"has a {name} that is no number: {entry[name]!r}"
    worst = entry.get("worst")
    if worst and not (has_numbers(worst, ("value",)) and is_text(worst.get("case"))):
        return "has a worst that is not {value, case}"
    return None
