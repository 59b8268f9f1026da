"""How long the kernels of a first run on a GPU should take, without one: `python -m benchmarks.predictions`.

A launch takes the longest of three times, and its start: the bytes of its tensors, each moved once, at the bandwidth of
a copy; what the busiest processor issues, counted in the machine code for sm_90, at four instructions of warps in a
cycle; the products that its tensor cores form, at their peak. None of the three is reached in practice, so a
measurement is longer: the table says which of them to look at, and by how much. Where the machine code's integers do
not tell how often a loop is run, the bytes alone count.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastattn.bench.sizes import FORWARD
from fastattn.report import Table, to_text
from fastattn.report.table import to_markdown

from .issued import ARCH, PROCESSORS, work
from .machine_code import WORKS, Row, launches
from .suites.cfsam import PyramidCase
from .suites.models import ModelCase

ISSUES, PRODUCTS = 4, 2048  # by a processor in a cycle: instructions of warps; products of numbers of 16 bits
START = 2.2e-6  # seconds of a launch after another whose results it reads, in a graph
LIBRARY = "What the library computes between our launches, LGA's 1x1 convolutions, is measured and not predicted."
FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Gpu:
    """Bytes that a copy moves in a second, reads and writes together, and cycles in one."""

    bandwidth: float
    clock: float


GPUS = {"H100": Gpu(3.0e12, 1.755e9), "H200": Gpu(4.3e12, 1.98e9)}


def launched(case: Any) -> Iterator[Row]:
    """The launches of a contest."""
    for done in WORKS if case.work != FORWARD else WORKS[:1]:
        yield from launches(case, done, ARCH)


def predict(row: Row) -> dict[str, Any]:
    """What a launch does, and its seconds on each GPU."""
    try:
        instructions, products = work(row)
    except RuntimeError:  # a loop whose end the integers do not tell
        instructions, products = 0, 0
    share = row.compilation.warps * -(-row.programs // PROCESSORS)  # warps of the busiest processor
    issues, multiplies = instructions * share / ISSUES, products * share / PRODUCTS
    seconds = {
        name: max(row.moved / gpu.bandwidth, max(issues, multiplies) / gpu.clock) + START for name, gpu in GPUS.items()
    }
    return {
        "pass": row.work, "kernel": row.compilation.kernel.removesuffix("_kernel"), "programs": row.programs,
        "bytes": row.moved, "issue_cycles": round(issues), "product_cycles": round(multiplies), "seconds": seconds,
    }  # fmt: skip


def predictions() -> dict[str, list[dict[str, Any]]]:
    """Every launch of the contests of operations, by the contest's name."""
    from .gpu_first.rows import contests

    return {
        name: [predict(row) for row in launched(case)]
        for name, case in contests().items()
        if not isinstance(case, ModelCase | PyramidCase)  # most of these is the library's
    }


def expected(launches: list[dict[str, Any]], gpu: str) -> float:
    """Seconds of a contest on a GPU."""
    return sum(launch["seconds"][gpu] for launch in launches)


def nearest(device: str) -> str | None:
    """The GPU that is predicted for, of a device's name."""
    return next((name for name in GPUS if name in device or name.replace("H100", "H800") in device), None)


def table(found: Mapping[str, list[dict[str, Any]]], measured: Mapping[str, float], gpu: str = "H200") -> Table:
    """The contests, and beside the predictions what was measured on a GPU, in seconds by the contest's name."""
    columns = ("contest", "launches", "MB", "issue, us", "products, us", *(f"{name}, us" for name in GPUS))
    columns += (f"measured on {gpu}", "of predicted")
    cells = []
    for name, made in found.items():
        clock = GPUS[gpu].clock
        sums = [sum(launch[key] for launch in made) for key in ("bytes", "issue_cycles", "product_cycles")]
        issue, products = (f"{cycles / clock * 1e6:.1f}" for cycles in sums[1:])
        more = "+" * any(not launch["issue_cycles"] for launch in made)  # what is not known is not counted
        row = [name, str(len(made)), f"{sums[0] / 1e6:.1f}", issue + more, products]
        row += [f"{expected(made, of) * 1e6:.1f}" for of in GPUS]
        if name in measured:
            row += [f"{measured[name] * 1e6:.1f}", f"{measured[name] / expected(made, gpu):.2f}"]
        cells.append((*row, *["-"] * (len(columns) - len(row))))
    title = f"Launches in a graph: predicted, and measured on {gpu}"
    return Table(title, columns, cells, [f"Issue and products are on {gpu}; + is of not all kernels.", LIBRARY])


def graphs(result: Mapping[str, Any]) -> dict[str, float]:
    """The least seconds that a result file has of this package's kernels in graphs, by the contest's name."""
    ending = " triton-graph"
    return {
        record["name"].removesuffix(ending): record["extra_info"]["least_ms"] / 1e3
        for record in result["benchmarks"]
        if record["name"].endswith(ending) and "least_ms" in record["extra_info"]
    }


def stored() -> dict[str, list[dict[str, Any]]]:
    """The predictions that are kept beside the results."""
    return json.loads(FILE.read_text())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"compile, count, write {FILE.name}: minutes")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--measured", type=Path, help="a result file, for what was measured")
    options = parser.parse_args(arguments)
    if options.write:
        FILE.write_text(json.dumps(predictions(), indent=1) + "\n")
    result = json.loads(options.measured.read_text()) if options.measured else {"benchmarks": []}
    gpu = nearest(options.measured.stem.upper()) if options.measured else None
    print((to_markdown if options.markdown else to_text)(table(stored(), graphs(result), gpu or "H200")))


if __name__ == "__main__":
    main()
