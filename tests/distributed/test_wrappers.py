"""Several processes train as one does on the joint batch: DDP, FSDP2, distributed tensors, checkpointing, compiled."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

import fastattn
from tests.helpers import few

from .training import MODULES, NETWORKS, STEPS, case, check, compare, gradients, optimizer_of, own, parameters

pytestmark = pytest.mark.xdist_group("processes")  # one group of each size
QUICK = ("scsa", "lga", "cfsam", "interaction")
CASES = [
    *(name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in (*MODULES, *NETWORKS)),
    pytest.param("ssd300", marks=pytest.mark.full),
]


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def ddp(model, **options):
    return DistributedDataParallel(model, **options)


def fsdp(model, **options):
    return fully_shard(model, mesh=mesh(), **options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_processes_train_as_one_does(processes, wrap, name):
    if name == "ssd300" and (wrap is fsdp or processes.world == 4):
        pytest.skip("two processes of this network take a minute under DDP alone")
    # of that an image's step is 200 GFLOP
    processes.run(partial(check, batch=2, steps=2) if name == "ssd300" else check, wrap, name)


def fsdp_by_blocks(model):
    """Shard each attention by itself and the rest around them, as large models are."""
    for module in model.modules():
        if isinstance(module, fastattn.SCSA | fastattn.EnhancedInteraction):
            fsdp(module)
    return fsdp(model)


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_attentions_are_sharded_by_themselves(processes, name):
    processes.run(check, fsdp_by_blocks, name)


def distributed(placement, model):
    """Have a model compute with distributed tensors, its parameters sharded by their first axis."""
    split = mesh()

    def partition(_, module, __):
        for name, parameter in [*module.named_parameters(recurse=False)]:
            module.register_parameter(name, nn.Parameter(distribute_tensor(parameter.detach(), split, [Shard(0)])))

    def give(_, inputs, __):
        return tree_map_only(torch.Tensor, lambda t: distribute_tensor(t, split, [placement]), inputs)

    def take(_, outputs, __):
        return tree_map_only(torch.Tensor, lambda t: t.full_tensor(), outputs)

    return distribute_module(model, split, partition, give, take)


@pytest.mark.parametrize("name", CASES[: len(MODULES)])
@pytest.mark.parametrize("placement", few([Shard(0), Replicate()]), ids=str)
def test_parameters_are_distributed_tensors(processes, placement, name):
    processes.run(partial(check, shared=False), partial(distributed, placement), name)


def refused():
    model, (x,), _ = case("scsa")
    x = distribute_tensor(x, mesh(), [Replicate()])
    with pytest.raises(RuntimeError, match="x is a DTensor and a parameter is not"):
        model(x)


def test_distributed_input_of_a_plain_module(two):
    two.run(refused)


def tensor_parallel(plan, model):
    return parallelize_module(model, mesh(), plan)


MLP = {
    "vit": {"blocks.*.mlp.fc1": ColwiseParallel(), "blocks.*.mlp.fc2": RowwiseParallel()},
    "cfsam": {"blocks.*.mlp.0": ColwiseParallel(), "blocks.*.mlp.2": RowwiseParallel()},
    "interaction": {"interaction.cat.value": ColwiseParallel(output_layouts=Replicate())},
}


@pytest.mark.parametrize("name", few(MLP))
def test_tensor_parallel_layers(processes, name):
    """Beside an attention, and inside of one, which then runs through its children."""
    processes.run(partial(check, shared=False), partial(tensor_parallel, MLP[name]), name)


def checkpointed(wrap, model):
    return wrap(checkpoint_wrapper(model))


@pytest.mark.parametrize("name", few(QUICK))
@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_activations_are_recomputed(processes, wrap, name):
    processes.run(check, partial(checkpointed, wrap), name)


def compiled(wrap, backend, model):
    return torch.compile(wrap(model), backend=backend)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "backend"),
    [("scsa", "aot_eager"), *((name, "inductor") for name in QUICK)],
)
@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_compiled_around_a_wrapper(two, wrap, backend, name):
    two.run(check, partial(compiled, wrap, backend), name)


@pytest.mark.parametrize(
    "options",
    few(
        [
            {"static_graph": True},
            {"find_unused_parameters": True},
            {"gradient_as_bucket_view": True},
            {"broadcast_buffers": False, "bucket_cap_mb": 1e-4},
        ],
        2,
    ),
    ids=lambda options: next(iter(options)),
)
def test_options_of_ddp(processes, options):
    processes.run(check, partial(ddp, **options), "scsa")


class Unused(nn.Module):
    """A model beside another that is never called."""

    def __init__(self, model):
        super().__init__()
        self.model, self.unused = model, fastattn.SCSA(16)

    def forward(self, x):
        return self.model(x)


def unused():
    model, images, loss = case("scsa")
    wrapped = ddp(Unused(copy.deepcopy(model)), find_unused_parameters=True)
    for _ in range(2):
        loss(model, images).backward()
        loss(wrapped, own(images)).backward()
    compare(gradients(wrapped.module.model), gradients(model))
    assert {p.grad for p in wrapped.module.unused.parameters()} == {None}


def test_an_attention_that_is_not_called(processes):
    processes.run(unused)


def frozen(wrap):
    """A backbone without gradients, of which the attentions train."""

    def freeze(model):
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, fastattn.SCSA):
                module.requires_grad_(True)
        return model

    model, images, loss = case("resnet18")
    wrapped = wrap(freeze(copy.deepcopy(model)))
    loss(freeze(model), images).backward()
    loss(wrapped, own(images)).backward()
    found = gradients(wrapped)
    assert 0 < sum(grad is not None for grad in found.values()) < len(found)
    compare(found, gradients(model))


@pytest.mark.full
@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_a_frozen_backbone(processes, wrap):
    processes.run(frozen, wrap)


def accumulated(wrap, name):
    """Two batches for a step, of which the second alone is communicated."""
    model, images, loss = case(name)
    wrapped = wrap(copy.deepcopy(model))
    for last in (False, True):
        loss(model, images).backward()
        if wrap is fsdp:
            wrapped.set_requires_gradient_sync(last)
            loss(wrapped, own(images)).backward()
        elif last:
            loss(wrapped, own(images)).backward()
        else:
            with wrapped.no_sync():
                loss(wrapped, own(images)).backward()
    compare(gradients(wrapped), gradients(model))


@pytest.mark.parametrize("name", few(QUICK))
@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_gradients_are_accumulated(processes, wrap, name):
    processes.run(accumulated, wrap, name)


@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_shares_are_uneven(processes, wrap):
    processes.run(partial(check, batch=5), wrap, "scsa")


def joined():
    """A process that has a batch more than the others."""
    model, images, loss = case("scsa")
    wrapped, rank, world = ddp(copy.deepcopy(model)), dist.get_rank(), dist.get_world_size()
    one, several = optimizer_of(model), optimizer_of(wrapped)
    with wrapped.join():
        for step in range(STEPS if rank == 0 else STEPS - 1):
            several.zero_grad()
            loss(wrapped, own(tuple(t.roll(step, 0) for t in images))).backward()
            several.step()
    for step in range(STEPS):
        one.zero_grad()
        batch = tuple(t.roll(step, 0) for t in images)
        last = tuple(t.tensor_split(world)[0] for t in batch)
        (loss(model, batch) if step < STEPS - 1 else loss(model, last) / world).backward()
        one.step()
    compare(parameters(wrapped), parameters(model))


def test_a_process_has_one_more_batch(processes):
    processes.run(joined)


def mixed_precision(name):
    """Computed in bfloat16 and reduced in float32: the mean of what each share gives in bfloat16."""
    model, images, loss = case(name)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    wrapped = fsdp(copy.deepcopy(model), mp_policy=policy)
    world = dist.get_world_size()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for rank in range(world):
        twin = copy.deepcopy(model).bfloat16()
        share = tuple(t.tensor_split(world)[rank] for t in images)
        loss(lambda x, twin=twin: twin(lower(x)), share).backward()
        for key, parameter in twin.named_parameters():
            expected[key] += parameter.grad.float() / world
    loss(wrapped, own(images)).backward()
    found = gradients(wrapped)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    compare(found, expected)


def lower(x):
    return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, x)


@pytest.mark.parametrize("name", few(QUICK, 2))
def test_mixed_precision_of_fsdp(processes, name):
    processes.run(mixed_precision, name)


def test_batch_norm_alone_becomes_synchronised():
    """SyncBatchNorm trains on GPUs only: that the attentions stay as they are, and on their fast paths, is what can be
    asked here."""
    pytest.importorskip("timm")
    model, (images, _), _ = case("resnet18")
    expected = model.eval()(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    kinds = [type(module) for module in converted.modules()]
    assert nn.BatchNorm2d not in kinds
    attentions = [module for module in converted.modules() if isinstance(module, fastattn.SCSA)]
    assert kinds.count(nn.GroupNorm) == 3 * len(attentions) > 0
    assert not any(module._runs_through_children() for module in attentions)
    torch.testing.assert_close(converted(images), expected)
