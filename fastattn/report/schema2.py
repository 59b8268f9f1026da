"""Results of schema 2, which did not say what their suites are: the only place of the report that names operations."""

from collections.abc import Mapping
from typing import Any

IMAGES = {"rate": ["images/s", "images_per_s"], "readme": "all"}
SHAPED = {name: name for name in ("shape", "dtype", "format", "work")}
COMPOSED = {"notes": ["composed: torch's own operators, rearranged by the same algebra."], "yardsticks": ["composed"]}


def columns(*names: str) -> dict[str, str]:
    return {name: name for name in names}


SUITES: dict[str, dict[str, Any]] = {
    "module": {
        "title": "SCSA as a module", "columns": SHAPED, "chart": "SCSA", "roofline": True, "readme": "some",
    },
    "tuned": {"title": "SCSA beside max-autotune", "columns": SHAPED},
    "copy": {"title": "SCSA beside out.copy_(x)", "columns": SHAPED},
    "precision": {
        "title": "SCSA in two precisions", "columns": columns("shape", "format", "work"), "yardsticks": ["float32"],
    },
    "attention": {
        "title": "Partitioned attention",
        "columns": columns("q, k, v", "parts", "dtype", "work"),
        "options": ["heads", "parts"],
        "label": ["parts"],
        "rate": ["GFLOP/s", "gflop_per_s"],
        "notes": [
            "GFLOP/s: multiplications and additions of the matrix products, two forward and five backward, by that "
            "time.",
            "The explicit softmax, eager's and compile's, is left out where its scores alone would not fit.",
        ],
        "yardsticks": ["sdpa copies", "sdpa view"],
        "chart": "Partitioned attention",
        "readme": "all",
    },
    "pyramid": IMAGES | {
        "title": "CFSAM at SSD300's levels",
        "columns": {"batch": "shape.0", "tokens": "shape.1", "parts of it": "ablation"}
        | columns("dtype", "format", "work"),
        "options": ["ablation", "levels"],
        "label": ["ablation"],
        "notes": ["LFE: local extraction; GFE: the transformer block over all levels; fusion of both."],
        "chart": "CFSAM",
    },
    "lga": IMAGES | {
        "title": "LGA as a module",
        "columns": columns("shape", "heads", "contraction", "dtype", "format", "work"),
        "options": ["heads", "contraction"],
        "label": ["contraction"],
        "notes": ["paper: equation 10; released: what the author's code computes, without queries and keys."],
        "chart": "LGA",
    },
    "acp": IMAGES | COMPOSED | {
        "title": "ACP as a module",
        "columns": columns("shape", "layers", "dtype", "format", "work"),
        "options": ["layers"],
        "label": ["layers"],
        "chart": "ACP",
    },
    "cat": IMAGES | COMPOSED | {
        "title": "CAT as a module",
        "columns": {"tokens": "shape"} | columns("concepts", "dtype", "work"),
        "options": ["concepts"],
        "label": ["concepts"],
        "chart": "CAT",
    },
    "model": {
        "title": "Whole models",
        "columns": {"model": "model", "attention": "placed", "batch": "shape.0", "format": "format"},
        "options": ["levels"],
        "readme": "all",
        "models": True,
    },
}  # fmt: skip
TITLES = {
    "scsa-backbones": "Backbones with SCSA and others",
    "scsa-ablation": "SCSA's ablations",
    "cfsam-ssd300": "SSD300 with CFSAM and others",
    "lga-backbones": "Backbones with LGA and others",
    "modules": "Modules alone",
}


def adapted(result: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a later schema has it: with what its suites are, and two facts in words."""
    benchmarks = [
        benchmark | {"extra_info": in_words(benchmark["extra_info"])}
        if isinstance(benchmark, dict) and isinstance(benchmark.get("extra_info"), dict)
        else benchmark
        for benchmark in result["benchmarks"]
    ]
    ours = {"suites": SUITES, "titles": TITLES} | result["fastattn"]
    return dict(result) | {"benchmarks": benchmarks, "fastattn": ours}


def in_words(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the shape of its queries and keys, and the place of its model's attention."""
    if record.get("suite") in ("attention", "memory"):
        shape, heads = record.get("shape"), record.get("heads")
        if isinstance(heads, int) and heads > 0 and isinstance(shape, list) and list(map(type, shape)) == [int] * 3:
            return record | {"q, k, v": f"({shape[0]}, {shape[1]}, {heads} × {shape[2] // heads})"}
    if record.get("suite") == "model":
        operation, levels = str(record.get("operation", "scsa")), record.get("levels")
        name = "ACP + CAT" if operation == "interaction" else operation.upper()
        return record | {"placed": f"{name} on {levels} levels" if levels else name}
    return record
