"""A distributed checkpoint goes on: in as many processes to the bit, and in another number of them."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.helpers import few

from .training import case, compare, optimizer_of, own, parameters

pytestmark = pytest.mark.xdist_group("processes")


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
