"""Each example runs, quickly, as its user would start it."""

import json
import os
import subprocess
import sys
import time
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


@pytest.mark.full
def test_a_training_that_was_killed_goes_on_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    command = [sys.executable, "examples/train_classifier.py", "--quick", "--ema", "0.9"]
    command += ["--log-every", "1", "--save-every", "6", "--out"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def losses(out: Path) -> list[tuple[int, float]]:
        rows = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
        return [(row["step"], row["loss"]) for row in rows]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, whole], cwd=ROOT, env=env, check=True, capture_output=True, timeout=600)
    with subprocess.Popen([*command, killed], cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as first:
        until = time.monotonic() + 300
        while not (killed / "step-00000012/.metadata").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert first.poll() is None
        first.kill()
    before = losses(killed)
    subprocess.run([*command, killed], cwd=ROOT, env=env, check=True, capture_output=True, timeout=600)
    assert before[0][0] == 1
    assert losses(killed)[len(before)][0] > 12
    assert dict(losses(killed)) == dict(losses(whole))
