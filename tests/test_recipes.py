"""CONTRIBUTING.md's recipe for a new attention works as it is written, in a copy of the tree."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastattn", "kernels", "csrc", "benchmarks", "tests", "docs", "examples", "findings", "reports")
RECIPE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## A new attention")[1].split("\n## ")[0]
# What step 5 says in words: the one line that each list gets, and behind which one.
LISTS = {
    "fastattn/__init__.py": ("from .core.warmup", "from .gate.module import ChannelGate as ChannelGate"),
    "fastattn/functional.py": ("from .cfsam", "from .gate.functional import channel_gate as channel_gate"),
    "fastattn/reference.py": ("from .cfsam", "from .gate.reference import channel_gate as channel_gate"),
    "docs/architecture.md": (
        "| `EnhancedInteraction`",
        "| `ChannelGate` | `gate` | `fastattn/gate` | PyTorch's operators | - | - | `tests/gate` |",
    ),
}


def files_of_the_recipe() -> dict[str, str]:
    """Return the recipe's Python by the file that the text before it names."""
    found = {}
    for text, code in re.findall(r"(.*?)^ *```python\n(.*?)^ *```$", RECIPE, flags=re.DOTALL | re.MULTILINE):
        named = [path for path in re.findall(r"`((?:fastattn|tests)/gate/\w+\.py)`", text) if "__init__" not in path]
        found[named[-1]] = re.sub(r"^ {3}", "", code, flags=re.MULTILINE)
    return found


def copy_repository(tree: Path) -> None:
    """Copy what the package is imported from, and what its documents name."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "Makefile"):
        shutil.copy(path, tree)
    if not (tree / "fastattn/kernels").exists():  # an install has it there
        (tree / "fastattn/kernels").symlink_to("../kernels")


@pytest.mark.parametrize("path", [path for path in LISTS if path.endswith(".md")])
def test_a_row_of_the_recipe_has_the_columns_of_its_table(path: str) -> None:
    after, row = LISTS[path]
    (before,) = (line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if line.startswith(after))
    assert row.count("|") == before.count("|")


@pytest.mark.full  # half a minute
def test_a_new_attention(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    for path, code in files_of_the_recipe().items():
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(code, encoding="utf-8")
    for path, (after, line) in LISTS.items():
        text = (tmp_path / path).read_text(encoding="utf-8")
        assert after in text
        text = re.sub(rf"^({re.escape(after)}.*\n)", rf"\1{line}\n", text, count=1, flags=re.MULTILINE)
        (tmp_path / path).write_text(text, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "0"}
    commands = re.findall(r"^ *python (-[mc] .+)$", RECIPE, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        arguments = [sys.executable, *shlex.split(command)]
        done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert "gate on cpu, float32: served by native" in done.stdout
