"""What the tests train in several processes, and in one on the joint batch: models, their data, steps, comparison."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import fastattn
from fastattn import models

BATCH = 4
STEPS = 5
LIMIT = 1e-5  # ||found - expected|| / ||expected||: sums over images are taken in another order

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]


class Tokens(nn.Module):
    """An interaction on the tokens of a 4 x 4 grid, so that it takes one tensor as the others do."""

    def __init__(self):
        super().__init__()
        self.interaction = fastattn.EnhancedInteraction(16, num_concepts=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.interaction(x, (4, 4))


class Case(NamedTuple):
    """A model, the joint batch, and the loss of what the model makes of it: a mean over the images."""

    model: nn.Module
    batch: Batch
    loss: Loss


def _squared(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean square of the distances between outputs and inputs, both drawn at random."""
    maps = [*batch]
    outs = model(maps if len(maps) > 1 else maps[0])
    outs = outs if isinstance(outs, list) else [outs]
    return sum((F.mse_loss(out.float(), x.float()) for out, x in zip(outs, maps, strict=True)), torch.zeros(()))


def _classified(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


class Heads(nn.Module):
    """What a detector computes before its loss, which picks the hardest boxes: rounding alone picks others."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> list[Tensor]:
        return [*self.detector.head([*self.detector.backbone(x).values()]).values()]


def _small(model: nn.Module, batch: Batch) -> Tensor:
    return sum((out.square().mean() for out in model(batch[0])), torch.zeros(()))


def _modules() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    return {
        "scsa": lambda: (fastattn.SCSA(16), [(16, 14, 14)]),
        "smsa": lambda: (fastattn.SMSA(16), [(16, 14, 14)]),
        "pcsa": lambda: (fastattn.PCSA(16, qkv_bias=True), [(16, 14, 14)]),
        "lga": lambda: (fastattn.LocalGlobalAttention(8, 4, (1, 3), 5, 4, 3, 2), [(8, 9, 8)]),
        "acp": lambda: (fastattn.AggressiveConvPooling(16), [(16, 8, 8)]),
        "cat": lambda: (fastattn.ConceptualAttention(16, 5), [(20, 16)]),
        "interaction": lambda: (Tokens(), [(16, 16)]),
        "cfsam": lambda: (fastattn.CFSAM([8, 16], 32, num_heads=2), [(8, 4, 4), (16, 2, 2)]),
    }


MODULES = [*_modules()]
NETWORKS = ["resnet18", "vit"]


def case(name: str, batch: int = BATCH) -> Case:
    """Return a case, the same in all processes."""
    torch.manual_seed(0)
    if name == "resnet18":
        # timm's blocks would start as identities, and no gradient would reach an attention in the first step
        how = {"zero_init_last": False, "attention_kwargs": {"window_size": 1}}
        model = models.create("resnet18", "scsa", num_classes=5, **how)
        freeze_statistics(model)
        return Case(model, (torch.randn(batch, 3, 32, 32), torch.arange(batch) % 5), _classified)
    if name == "vit":
        small = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_classes": 5}
        model = models.create("vit_tiny_patch16_224", "interaction", attention_kwargs={"num_concepts": 6}, **small)
        return Case(model, (torch.randn(batch, 3, 32, 32), torch.arange(batch) % 5), _classified)
    if name == "ssd300":
        model = models.create("ssd300_vgg16", "cfsam", num_classes=3, weights=None, weights_backbone=None)
        # float64, as in float32 rounding grows over VGG's layers and steps to 1e-4
        return Case(Heads(model).double(), (torch.rand(batch, 3, 300, 300, dtype=torch.float64),), _small)
    module, shapes = _modules()[name]()
    maps = (torch.randn(batch, *shape) for shape in shapes)
    return Case(module, tuple(maps), _squared)


def freeze_statistics(model: nn.Module) -> None:
    """Have batch norm use its running statistics: those of a process's own share of the batch would be others."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def own(batch: Batch) -> Batch:
    """Return this process's share of a batch: all of it outside of a group."""
    if not dist.is_initialized():
        return batch
    rank, world = dist.get_rank(), dist.get_world_size()
    return tuple(t.tensor_split(world)[rank] for t in batch)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)


def train(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Iterator[Tensor]:
    """Train a step for each batch, giving each loss once the gradients are there."""
    optimizer = optimizer_of(model)
    for batch in batches:
        optimizer.zero_grad()
        found = loss(model, batch)
        found.backward()
        yield found.detach()
        optimizer.step()


def whole(t: Tensor) -> Tensor:
    """Return a tensor, all of it where processes hold shards."""
    return t.detach().full_tensor() if hasattr(t, "full_tensor") else t.detach()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Return the gradients by the names that parameters have in the plain model."""
    return {plain(name): None if p.grad is None else whole(p.grad).clone() for name, p in model.named_parameters()}


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {plain(name): whole(p).clone() for name, p in model.named_parameters()}


def plain(name: str) -> str:
    """Return a parameter's name without what wrappers add."""
    for added in ("_checkpoint_wrapped_module.", "_orig_mod.", "module."):
        name = name.replace(added, "")
    return name


def compare(found: dict[str, Any], expected: dict[str, Any], limit: float = LIMIT) -> None:
    """Assert that tensors are as far apart as rounding, those that are zero but for it on the scale of the others."""
    assert found.keys() == expected.keys()
    assert [k for k, t in found.items() if t is None] == [k for k, t in expected.items() if t is None]
    scale = max(float(t.norm()) / t.numel() ** 0.5 for t in expected.values() if t is not None)
    assert scale > 0
    wrong = []
    for name, truth in expected.items():
        if truth is not None:
            least = 1e-3 * scale * truth.numel() ** 0.5
            error = float((found[name].double() - truth.double()).norm() / max(float(truth.norm()), least))
            if not error <= limit:
                wrong.append(f"{name}: error {error:.2e}, allowed {limit:.2e}")
    assert not wrong, "; ".join(wrong)


def check(
    wrap: Callable[[nn.Module], nn.Module], name: str, *, batch: int = BATCH, steps: int = STEPS, shared: bool = True
) -> None:
    """Train a wrapped copy of a model on this process's shares, or on the whole batches, and the model on the joint
    batch: equal gradients at every step, and equal parameters at the end."""
    model, images, loss = case(name, batch)
    wrapped = wrap(copy.deepcopy(model))
    batches = [tuple(t.roll(step, 0) for t in images) for step in range(steps)]
    several = train(wrapped, map(own, batches), of_mean(loss, batch)) if shared else train(wrapped, batches, loss)
    for _ in zip(train(model, batches, loss), several, strict=True):
        compare(gradients(wrapped), gradients(model))
    compare(parameters(wrapped), parameters(model))


def of_mean(loss: Loss, total: int) -> Loss:
    """Weigh a loss such that its mean over the processes is that of the joint batch, whose shares may be uneven."""
    world = dist.get_world_size()
    return lambda model, batch: loss(model, batch) * (len(batch[0]) * world / total)
