"""Results as the benchmarks write them, with invented figures."""

from typing import Any

from benchmarks.suites import described
from fastattn.bench.tables import TITLES
from fastattn.report import SCHEMA

Record = dict[str, Any]
DESCRIBED = {"schema": SCHEMA, "suites": described(), "titles": TITLES}


def benchmark(rival: str, least_ms: float, over: dict[str, float], /, **facts: Any) -> dict[str, Any]:
    """A benchmark whose rounds all took `least_ms`, and its speedups over others; `facts` go before."""
    usual = {"suite": "module", "work": "forward", "dtype": "float32", "format": "contiguous", "shape": [8, 64, 56, 56]}
    times = {"least_ms": least_ms, "median_ms": least_ms, "quartiles_ms": [least_ms, least_ms]}
    rates = {"gb_per_s": 1.25, "images_per_s": 8e3 / least_ms}
    speedup = {name: {"least": ratio, "median": ratio} for name, ratio in over.items()}
    return {
        "name": f"test[{rival}]",
        "extra_info": usual | times | rates | {"rival": rival, "speedup": speedup} | facts,
    }


def failed(made: dict[str, Any], reason: str) -> dict[str, Any]:
    """The same benchmark, had it not been measured."""
    measured = ("least_ms", "median_ms", "quartiles_ms", "speedup", "gb_per_s", "images_per_s")
    kept = {name: value for name, value in made["extra_info"].items() if name not in measured}
    return made | {"extra_info": kept | {"failed": reason}}


def row(rival: str, median_ms: float, /, **facts: Any) -> dict[str, Any]:
    """A row of `bench scsa-backbones`: resnet50 with SCSA, unless `facts` say otherwise; its spread is 4%."""
    usual = {
        "suite": "throughput",
        "table": "scsa-backbones",
        "model": "resnet50",
        "attention": "scsa",
        "operation": "scsa",
        "variant": None,
        "shape": [8, 3, 224, 224],
        "parameters": 25_617_448,
        "multiply_adds": 4.1e9,
        "note": "after the first convolution of each block",
        "quartiles_ms": [0.98 * median_ms, 1.02 * median_ms],
    }
    images_per_s = {"images_per_s": 1e3 * facts.get("shape", usual["shape"])[0] / median_ms}
    return benchmark(rival, median_ms, {}, **usual | images_per_s | facts)


def result_of(benchmarks: list[dict[str, Any]], **ours: Any) -> dict[str, Any]:
    """A result with a machine and a commit; `ours` is what stands under `fastattn`."""
    return {
        "machine_info": {
            "cpu": "Some CPU",
            "threads": 2,
            "isa": "avx2",
            "system": "Linux x86_64",
            "python": "3.11.7",
            "versions": {"torch": "2.11.0", "fastattn": "0.1.0"},
        },
        "commit_info": {"id": "0123456789abcdef", "time": "2026-11-21T11:50:33+00:00", "dirty": False},
        "datetime": "2026-11-21T11:59:07.100192+00:00",
        "benchmarks": benchmarks,
        "fastattn": {**DESCRIBED, "selection": "default", "summary": [], **ours},
    }


def bench_result(benchmarks: list[dict[str, Any]], **ours: Any) -> dict[str, Any]:
    """A result of `python -m fastattn bench`."""
    protocol = {"batches": [8], "sizes": [224], "repeats": 5, "dtype": "float32", "format": "contiguous"}
    protocol |= {"work": "forward", "inputs": "photographs"}
    usual = {"selection": "quick", "tables": ["scsa-backbones"], "complete": True, "protocol": protocol}
    return result_of(benchmarks, **usual | ours)


BACKBONES = ("resnet50", "resnet101", "mobilenetv2_100", "repvgg_a0", "swin_tiny_patch4_window7_224")
ATTENTIONS = ("none", "se", "eca", "cbam", "fca", "cpca", "sa", "ela", "ca", "ema", "scsa")


def long_result(count: int) -> dict[str, Any]:
    """A result of so many rows: every backbone with every attention, at several batches and sizes."""
    cells = [
        (model, attention, batch, size)
        for model in BACKBONES
        for batch, size in ((8, 224), (32, 224), (8, 320), (128, 224))
        for attention in ATTENTIONS
    ]
    benchmarks = []
    for place, (model, attention, batch, size) in enumerate(cells):
        rivals = ("eager", "compile", "native") if attention == "scsa" else ("eager", "compile")
        for rank, rival in enumerate(rivals):
            facts = {"model": model, "attention": attention, "operation": attention, "shape": [batch, 3, size, size]}
            telemetry = {"cpu_mhz": {"least": 2900.0, "median": 3000.0, "most": 3010.0 + place % 3 * 100}}
            facts["note"] = None if attention == "none" else f"{attention} where its paper places it"
            made = row(rival, 1.2 * batch * (1 + place % 7) / (1 + rank), **facts, telemetry=telemetry)
            ratios = {other: (1 + rank) / (1 + rivals.index(other)) for other in rivals if other != rival}
            ratios |= {} if attention == "none" else {"plain": 0.6 + 0.1 * rank}
            made["extra_info"]["speedup"] = {name: {"least": r, "median": r} for name, r in ratios.items()}
            benchmarks.append(made)
    modules = [("scsa", 64, 56), ("scsa", 128, 28), ("lga", 24, 20), ("acp", 96, 56), ("smsa", 512, 7)]
    for place in range(max(0, count - len(benchmarks))):
        attention, channels, side = modules[place // 3 % len(modules)]
        rival = ("eager", "compile", "native")[place % 3]
        facts = {"table": "modules", "model": None, "attention": attention, "note": None, "parameters": 4000}
        facts |= {"shape": [place // 15 + 1, channels, side, side], "bytes_moved_at_least": 8 * channels * side**2}
        made = row(rival, 1.0, **facts, gb_per_s=10.0 + place % 3, copy_gb_per_s=40.0)
        made["extra_info"]["speedup"] = {} if rival == "eager" else {"eager": {"least": 2.0, "median": 2.0}}
        benchmarks.append(made)
    return bench_result(benchmarks[:count], tables=["scsa-backbones", "modules"])
