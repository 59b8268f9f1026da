"""Each example runs, quickly, as its user would start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAST = {
    "classifier": "accuracy on 360 digits: ",
    "detector": "one step of training: ",
    "vit": "the checkpoint gives the same logits",
}


def test_each_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(LAST)


@pytest.mark.full  # a minute each: CI runs them by themselves
@pytest.mark.parametrize("name", LAST)
def test_an_example_runs(name: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision" if name == "detector" else "sklearn")
    command = [sys.executable, f"examples/{name}.py", "--quick"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # tests share the machine's cores
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith(LAST[name])
