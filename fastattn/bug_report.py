"""`python -m fastattn info --bug-report`: what an issue needs, without the names of folders, hosts and users."""

import os
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .bench import machine

SETTINGS = ("FASTATTN_", "TRITON_", "TORCH", "OMP_", "GOMP_", "KMP_", "MKL_", "CUDA_VISIBLE_DEVICES", "PYTHON_GIL")
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?[\\/](?:[^\\/\s:;,'\"]+[\\/])*")
MAPS = Path("/proc/self/maps")


def report(info: str) -> str:
    """Return an issue's text: what `info` says, how fastattn was installed, the machine, the settings."""
    facts = machine.describe(memory_kept=False)
    del facts["python"], facts["freed_memory"]  # info has it; of benchmarks alone
    lines = [
        *info.splitlines(),
        f"installed: {installed()}",
        f"OpenMP: {', '.join(openmp()) or 'unknown'}",
        *(f"{name}: {_text(value)}" for name, value in facts.items()),
        *settings(),
    ]
    return "\n".join(["```", *map(without_folders, lines), "```"])


def without_folders(line: str) -> str:
    """Return a line with every path cut down to its last part."""
    return _FOLDERS.sub(lambda found: "" if len(found[0]) > 1 else found[0], line)


def settings() -> list[str]:
    """Return the variables of the environment that matter here, without those that are paths."""
    found = sorted((name, value) for name, value in os.environ.items() if name.startswith(SETTINGS))
    return [f"{name}={'(a path)' if os.sep in value else value}" for name, value in found]


def installed() -> str:
    """Return the tags of the wheel that fastattn was installed from, and whether it is editable."""
    try:
        files = distribution("fastattn")
    except PackageNotFoundError:
        return "not by pip"
    tags = re.findall(r"^Tag: (.+)$", files.read_text("WHEEL") or "", re.MULTILINE)
    editable = '"editable": true' in (files.read_text("direct_url.json") or "")
    return ", ".join([*tags, *(["editable"] if editable else [])]) or "not from a wheel"


def openmp() -> list[str]:
    """Return the names of the OpenMP runtimes in this process: more than one is trouble."""
    mapped = MAPS.read_text().splitlines() if MAPS.exists() else []
    names = {Path(line.split()[-1]).name for line in mapped}
    return sorted(name for name in names if re.match(r"lib(g|i|)omp\d*[.-]", name))


def _text(value: object) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
