"""Train a classifier with one of the papers' attentions, in one process or in many; interrupted, it goes on.

    python examples/train_classifier.py [--quick]                                # scikit-learn's digits
    python examples/train_classifier.py --recipe scsa-resnet --data IMAGES --out FOLDER
    torchrun --nproc-per-node 8 examples/train_classifier.py --recipe scsa-resnet --data IMAGES --out FOLDER

IMAGES holds train/CLASS/*.jpg and val/CLASS/*.jpg. The digits come with scikit-learn: nothing is downloaded. FOLDER
gets log.jsonl and checkpoints, from the last of which the same command goes on, with as many processes as it then has.
A batch is that of all processes together. docs/distributed.md has two machines.
"""

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from fastattn import models

SEED = 0
KEPT = 2  # checkpoints


class Recipe(NamedTuple):
    """How a paper trains; what it leaves to the backbone's own paper is from there."""

    model: str
    attention: str
    epochs: int
    batch: int
    optimizer: str
    lr: float
    weight_decay: float
    decay: str = "cosine"
    warmup: int = 0  # epochs
    size: int = 224
    amp: bool = True
    momentum: float = 0.9


RECIPES = {
    "digits": Recipe("resnet18", "scsa", 5, 64, "adamw", 2e-3, 0.01, size=32, amp=False),
    # arXiv 2407.05128, section 4: batches, rates and AMP
    "scsa-resnet": Recipe("resnet50", "scsa", 100, 128, "sgd", 0.05, 1e-4, decay="steps"),
    "scsa-mobilenetv2": Recipe("mobilenetv2_100", "scsa", 300, 96, "rmsprop", 0.045, 4e-5, decay="exponential"),
    "scsa-repvgg": Recipe("repvgg_a0", "scsa", 120, 128, "sgd", 0.05, 1e-4),
    "scsa-swin": Recipe("swin_tiny_patch4_window7_224", "scsa", 300, 128, "adamw", 1.25e-4, 0.05, warmup=20),
    # arXiv 2411.09604: YOLOv8's settings, 20 epochs
    "lga": Recipe("mobilenetv3_large_100", "lga", 20, 16, "sgd", 0.01, 5e-4, "linear", warmup=3, momentum=0.937),
}


class Seeded(Dataset):
    """A dataset whose images are augmented alike wherever and whenever they are read in an epoch."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.epoch = dataset, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((SEED, self.epoch, index)))
            return self.dataset[index]


def digits(size: int) -> tuple[Dataset, Dataset, int]:
    """Return scikit-learn's digits as images (3, size, size), to train on and to test on, and the number of classes."""
    from sklearn.datasets import load_digits

    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    x = F.interpolate(images.float().view(-1, 1, 8, 8) / 16, size=size, mode="bilinear").expand(-1, 3, -1, -1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    train, test = order[360:], order[:360]
    return TensorDataset(x[train], labels[train]), TensorDataset(x[test], labels[test]), 10


def folder(path: Path, size: int) -> tuple[Dataset, Dataset, int]:
    """Return a folder's images likewise, augmented as for ImageNet."""
    from torchvision import transforms as t
    from torchvision.datasets import ImageFolder

    end = [t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    train = t.Compose([t.RandomResizedCrop(size), t.RandomHorizontalFlip(), *end])
    val = t.Compose([t.Resize(size * 8 // 7), t.CenterCrop(size), *end])
    data = ImageFolder(path / "train", train)
    return data, ImageFolder(path / "val", val), len(data.classes)


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    common = {"params": model.parameters(), "lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(**common)
    kind = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.RMSprop
    return kind(momentum=recipe.momentum, **common)


def rate(recipe: Recipe, epoch: float) -> float:
    """Return the learning rate at a time in epochs."""
    if epoch < recipe.warmup:
        return recipe.lr * (epoch + 1e-3) / recipe.warmup
    done = (epoch - recipe.warmup) / (recipe.epochs - recipe.warmup)
    factors = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - 0.99 * done,
        "steps": 0.1 ** sum(done >= end for end in (0.3, 0.6, 0.9)),
        "exponential": 0.98 ** int(epoch),
    }
    return recipe.lr * factors[recipe.decay]


@dataclass
class Training:
    """What a checkpoint holds: all that the next step depends on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: AveragedModel | None
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        averaged = self.averaged.state_dict() if self.averaged else {}
        return {
            "model": model,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "averaged": averaged,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.step = state["step"]


class Checkpoints:
    """The folder's checkpoints; one without its index was not finished."""

    def __init__(self, path: Path | None):
        self.path = path

    def finished(self) -> list[Path]:
        every = sorted(self.path.glob("step-*")) if self.path else []
        return [each for each in every if (each / ".metadata").exists()]

    def save(self, training: Training) -> None:
        if self.path is None:
            return
        dcp.save({"training": training}, checkpoint_id=self.path / f"step-{training.step:08d}")
        if is_first():
            for old in self.finished()[:-KEPT]:
                shutil.rmtree(old)

    def load(self, training: Training) -> None:
        """Go on from the last checkpoint, if there is one."""
        if found := self.finished():
            dcp.load({"training": training}, checkpoint_id=found[-1])


class Log:
    """Lines for a reader, and in the folder's log.jsonl; of the first process."""

    def __init__(self, path: Path | None, steps: int):
        self.path, self.steps = path, steps

    def write(self, **row: Any) -> None:
        if not is_first():
            return
        print(f"step {row['step']} of {self.steps}:", ", ".join(f"{name} {value:.5g}" for name, value in row.items()))
        if self.path:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / "log.jsonl").open("a") as file:
                print(json.dumps(row), file=file)


def create(recipe: Recipe, classes: int) -> nn.Module:
    """Return the model."""
    # windows of 7 x 7, SCSA's default, fit the maps of 224 x 224 images, and not those of small ones
    small = {"window_size": 1} if recipe.attention == "scsa" and recipe.size < 224 else {}
    return models.create(recipe.model, recipe.attention, attention_kwargs=small, num_classes=classes)


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def mean(value: Tensor) -> float:
    """Return the mean of a number over the processes."""
    value = value.detach().double()
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value.item()


def accuracy(model: nn.Module, dataset: Dataset, batch: int, rank: int, world: int, device: torch.device) -> float:
    """Return the share of a dataset's labels that a model finds; each process looks at its part."""
    model.eval()
    right = torch.zeros((), device=device)
    with torch.no_grad():
        for x, y in DataLoader(Subset(dataset, range(rank, len(dataset), world)), batch):
            right += (model(x.to(device)).argmax(dim=1) == y.to(device)).sum()
    return mean(right) * world / len(dataset)


def batches(data: Seeded, epoch: int, skipped: int, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give this process's share of an epoch's batches, without those that were trained on already."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sampler = DistributedSampler(data, world, rank, seed=SEED, drop_last=True)
    sampler.set_epoch(epoch)
    data.epoch = epoch
    rest = [*sampler][skipped * batch :]
    yield from DataLoader(data, batch, sampler=rest, drop_last=True, num_workers=workers)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", choices=RECIPES, default="digits", help="settings, of which these replace some:")
    kinds = {"model": str, "attention": str, "epochs": int, "batch": int, "lr": float, "size": int}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, help="float16 on a GPU, bfloat16 on a CPU")
    parser.add_argument("--ema", type=float, help="average the weights with this decay, 0.9999 say, and test these")
    parser.add_argument("--data", type=Path, help="a folder of images; scikit-learn's digits without it")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images, for each that trains")
    parser.add_argument("--out", type=Path, help="a folder for the log and the checkpoints")
    parser.add_argument("--save-every", type=int, help="steps from checkpoint to checkpoint; an epoch without it")
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument("--quick", action="store_true", help="one epoch")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    given = {name: value for name, value in vars(options).items() if name in Recipe._fields and value is not None}
    recipe = RECIPES[options.recipe]._replace(**given | ({"epochs": 1} if options.quick else {}))
    on_gpu = torch.cuda.is_available()
    if "RANK" in os.environ:  # torchrun's, or accelerate's
        dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)

    torch.manual_seed(SEED)
    train, test, classes = folder(options.data, recipe.size) if options.data else digits(recipe.size)
    plain = create(recipe, classes).to(device)
    if on_gpu and world > 1:
        plain = nn.SyncBatchNorm.convert_sync_batchnorm(plain)  # which trains on GPUs alone
    model = DistributedDataParallel(plain) if world > 1 else plain
    averaged = None
    if options.ema is not None:
        averaged = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
    half = torch.float16 if on_gpu else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp and on_gpu)
    training = Training(plain, optimizer_of(plain, recipe), scaler, averaged)
    checkpoints, data = Checkpoints(options.out), Seeded(train)
    checkpoints.load(training)

    share = recipe.batch // world
    steps = len(train) // world // share
    log = Log(options.out, recipe.epochs * steps)
    for epoch in range(training.step // steps, recipe.epochs):
        for x, y in batches(data, epoch, training.step % steps, share, options.workers):
            started = time.perf_counter()
            torch.manual_seed(hash((SEED, training.step, rank)))  # what is dropped, also after a restart
            for group in training.optimizer.param_groups:
                group["lr"] = rate(recipe, training.step / steps)
            model.train()
            with torch.autocast(device.type, half, enabled=recipe.amp):
                loss = F.cross_entropy(model(x.to(device)), y.to(device))
            training.optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(training.optimizer)
            scaler.update()
            training.step += 1
            if training.averaged:
                training.averaged.update_parameters(plain)
            if training.step % options.log_every == 0:
                speed = recipe.batch / (time.perf_counter() - started)
                log.write(epoch=epoch + 1, step=training.step, loss=mean(loss), images_per_second=round(speed, 1))
            if training.step % (options.save_every or steps) == 0:
                checkpoints.save(training)
    found = accuracy(training.averaged or plain, test, share, rank, world, device)
    if is_first():
        print(f"accuracy on {len(test)} images: {found:.3f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
