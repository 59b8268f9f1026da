"""Each example runs, quickly, as its user would start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAST = {
    "train_classifier": "accuracy on 360 images: ",
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


@pytest.mark.full
def test_two_processes_train_a_classifier() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", "examples/train_classifier.py", "--quick", "--ema", "0.9", "--amp"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["step 10 of 22", "step 20 of 22", "accuracy on 360 images"]
