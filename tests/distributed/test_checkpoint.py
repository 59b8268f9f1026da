"""A distributed checkpoint goes on in another number of processes, and a killed run where it was, to the bit."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.helpers import few

from .training import case, compare, optimizer_of, own, parameters

ROOT = Path(__file__).resolve().parents[2]


def trainer(name):
    """Return a model, sharded where there is a group, its optimizer, and what trains it some steps."""
    model, images, loss = case(name)
    if dist.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = optimizer_of(model)

    def train(steps):
        losses = []
        for step in steps:
            optimizer.zero_grad()
            found = loss(model, own(tuple(t.roll(step, 0) for t in images)))
            found.backward()
            optimizer.step()
            losses.append(found.item())
        return losses

    return model, optimizer, train


def saved(name, path):
    """Train two steps, save, and train two more; return their losses and what the parameters are then."""
    model, optimizer, train = trainer(name)
    train(range(2))
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=path)
    return train(range(2, 4)), parameters(model)


def resumed(name, path):
    """Train the last two steps alone."""
    model, optimizer, train = trainer(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    return train(range(2, 4)), parameters(model)


@pytest.mark.parametrize("name", few(["lga", "scsa", "cfsam", "interaction"]))
def test_saved_by_two(two, name, tmp_path):
    expected = two.run(saved, name, tmp_path)
    assert [losses for losses, _ in two.run(resumed, name, tmp_path)] == [losses for losses, _ in expected]
    compare(resumed(name, tmp_path)[1], expected[0][1])


@pytest.mark.full
@pytest.mark.parametrize("name", ["lga", "resnet18", "vit"])
def test_saved_by_four(four, two, name, tmp_path):
    _, expected = four.run(saved, name, tmp_path)[0]
    compare(two.run(resumed, name, tmp_path)[0][1], expected)
    compare(resumed(name, tmp_path)[1], expected)


def torchrun(out, *options):
    """Start the example under torchrun in two processes, with a checkpoint after each of its six steps."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", "2", "--max-restarts", "1", "examples/train_classifier.py", "--quick"),
        *("--batch", "220", "--log-every", "1", "--save-every", "1", "--out", str(out), *options),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (out.parent / f"{out.name}.txt").open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)


def rows(out):
    path = out / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ended(process, out):
    assert process.wait(600) == 0, (out.parent / f"{out.name}.txt").read_text()[-2000:]


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_killed_worker_goes_on_to_the_bit(tmp_path):
    pytest.importorskip("timm")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended(torchrun(whole), whole)
    process = torchrun(killed)
    try:
        while len(rows(killed)) < 3 and process.poll() is None:
            time.sleep(0.1)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[-1]), 9)
        ended(process, killed)
    finally:
        process.kill()
    assert "restart" in (tmp_path / "killed.txt").read_text().lower()
    losses = [{row["step"]: row["loss"] for row in rows(out)} for out in (whole, killed)]
    assert losses[0].keys() == set(range(1, 7))
    assert losses[0] == losses[1]
    repeated = [row["step"] for row in rows(killed)]
    assert len(repeated) < 2 * len(losses[0])  # it did not begin anew
