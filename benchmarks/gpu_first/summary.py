"""The table and the JSON at the end of a run."""

import time
from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from fastattn.bench.machine import describe
from fastattn.bench.resume import commit
from fastattn.bench.sizes import CONTIGUOUS, FORWARD, STAGES, TRAINING
from fastattn.report import SCHEMA, Table, to_text

from .. import predictions
from ..shapes import GPU_BATCH
from ..suites import described, gpu_summary
from ..suites.figures import GPU_FAST, HOW, Record, launched, ratios, row, select
from .rows import PHASES

Found = dict[str, Any]  # a row and its result
RIVALS = "eager", "compile", "copy", "plain"
OVER = (*RIVALS, GPU_FAST)


def records(found: Sequence[Found]) -> list[dict[str, Any]]:
    """What the contests measured, as a result file has it."""
    return [
        {"name": f"{one['name']} {record['rival']}-{record.get('launch', '')}", "extra_info": record}
        for one in found
        for record in one.get("records", ())
    ]


def result(found: Sequence[Found], device: str) -> dict[str, Any]:
    """A result, with the rows that are no contests beside it."""
    benchmarks = records(found)
    return {
        "machine_info": describe(memory_kept=False),
        "commit_info": commit(),
        "datetime": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "benchmarks": benchmarks,
        "fastattn": {
            "schema": SCHEMA,
            "selection": "default" if device == "cuda" else "smoke",
            "device": device,
            "suites": described(),
            "summary": figures([benchmark["extra_info"] for benchmark in benchmarks]),
        },
        "gpu_first": [{key: value for key, value in one.items() if key != "records"} for one in found],
    }


ASKED = {(FORWARD, "eager"): 6.0, (TRAINING, "eager"): 5.0, (FORWARD, "compile"): 2.5, (TRAINING, "compile"): 2.0}
SHARES = {"resnet50": 0.97, "mobilenetv2_100": 0.85}


def figures(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What was asked of this run, and what else of a whole benchmark's figures it happens to hold."""
    found = []
    for launch, mine in launched(records):
        scsa = [
            r for r in select(mine, suite="module", rival=GPU_FAST, format=CONTIGUOUS) if r["shape"][0] == GPU_BATCH
        ]
        for (work, over), asked in ASKED.items():
            what = f"SCSA {work}, batch {GPU_BATCH}, four shapes contiguous, {HOW[launch]}, geometric mean"
            samples = ratios(select(scsa, work=work), over)
            found.append(row(what, f"times {over}'s speed", ">=", asked, samples, len(STAGES), by="median"))
        for model, asked in SHARES.items():
            networks = select(mine, suite="model", model=model)
            fast, eager = (ratios(select(networks, rival=rival), "plain") for rival in (GPU_FAST, "eager"))
            what = f"{model} + SCSA, batch {GPU_BATCH}, channels_last, {HOW[launch]}"
            entry = row(what, "of plain images/s", ">=", asked, fast, 1, by="median")
            found.append(entry | {"eager": eager[0].median if eager else None})
    known = {entry["what"] for entry in found}
    found += [entry for entry in gpu_summary(records) if entry["what"] not in known]
    return [entry for entry in found if entry["measured"] is not None]


def phases(found: Sequence[Found], seconds: dict[str, float]) -> Table:
    """How many rows of each phase hold."""
    rows: list[tuple[str, ...]] = []
    for phase in PHASES:
        mine = [one for one in found if one["phase"] == phase]
        late = sum(one.get("failed") == "time" for one in mine)
        good = sum(bool(one["ok"]) for one in mine)
        spent = f"{seconds.get(phase, 0.0):.0f}"
        rows.append((phase, str(len(mine)), str(good), str(len(mine) - good - late), str(late), spent))
    return Table("Rows", ("phase", "rows", "hold", "fail", "no time", "seconds"), rows)


def failures(found: Sequence[Found]) -> Table:
    """What does not hold, each in a line."""
    rows: list[tuple[str, ...]] = []
    for one in found:
        if not one["ok"] and one.get("failed") != "time":
            keys = [key for key in ("wrong", "moving", "failed", "differ", "worst", "said", "dtypes") if key in one]
            text = "; ".join(f"{key}: {one[key]}" for key in keys) or "not ok"
            rows.append((one["phase"], one["name"], text.strip().replace("\n", " ")[-300:]))
    return Table("Failures", ("phase", "row", "what"), rows)


def speeds(found: Sequence[Found]) -> Table:
    """Milliseconds, and how many times faster the package is than each rival."""
    rows: list[tuple[str, ...]] = []
    ratios: dict[tuple[str, ...], list[float]] = {}
    for one in found:
        for record in one.get("records", ()):
            label, launch = record["rival"], record["launch"]
            if label in RIVALS:
                continue
            beside = {over: value["median"] for over, value in record["speedup"].items()}
            kind = one["name"].split()[0], label, record["dtype"], record["work"], launch
            for over, value in beside.items():
                ratios.setdefault((*kind, over), []).append(value)
            cells = [f"{beside[over]:.2f}" if over in beside else "-" for over in OVER]
            rows.append((one["name"], f"{label} {launch}", f"{record['median_ms']:.4f}", *cells))
    for (name, *how, over), values in ratios.items():
        mean = prod(values) ** (1 / len(values))
        rows.append((f"mean: {name} {' '.join(how)}", f"over {over}", f"{mean:.2f}", *["-"] * len(OVER)))
    return Table("Times faster", ("contest", "who", "ms", *OVER), rows)


def overlaps(found: Sequence[Found]) -> Table:
    """Milliseconds with launches that overlap, beside those without."""
    alone = {
        (one["name"], record["launch"]): record["median_ms"]
        for one in found
        for record in one.get("records", ())
        if record["rival"].startswith(GPU_FAST)
    }
    rows: list[tuple[str, ...]] = []
    for one in found:
        name = one["name"].removeprefix("overlapped ")
        for launch, ms in one.get("overlapped", {}).items():
            before = alone.get((name, launch))
            cells = ("-", "-") if before is None else (f"{before:.4f}", f"{before / ms:.2f}")
            rows.append((name, launch, f"{ms:.4f}", *cells))
    return Table("Overlapping launches", ("contest", "how", "ms", "ms without", "times faster"), rows)


def predicted(found: Sequence[Found]) -> Table:
    """What was measured in graphs beside what was predicted without a GPU."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    measured = predictions.graphs({"benchmarks": records(found)})
    made = {name: launches for name, launches in predictions.stored().items() if name in measured}
    return predictions.table(made, measured, predictions.nearest(device) or "H200")


def text(found: Sequence[Found], seconds: dict[str, float]) -> str:
    tables = speeds(found), overlaps(found), predicted(found), failures(found), phases(found, seconds)
    return "\n\n".join(to_text(table) for table in tables if table.rows)
