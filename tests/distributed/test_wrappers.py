"""Several processes train as one does on the joint batch: DDP, FSDP2, with checkpointing and compiled."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
import torch.distributed as dist

from .training import MODULES, NETWORKS, check


def ddp(model, **options):
    return DistributedDataParallel(model, **options)


def fsdp(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


@pytest.mark.parametrize("name", [*MODULES, *NETWORKS, pytest.param("ssd300", marks=pytest.mark.full)])
@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_processes_train_as_one_does(processes, wrap, name):
    processes.run(check, wrap, name)
