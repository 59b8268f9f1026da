"""`python -m fastattn explain-model BACKBONE --attention NAME -o DIR`: what a stage of a network looks at, plain and
with attention: Grad-CAM (arXiv 1610.02391) over photographs, and the effective receptive field (arXiv 1701.04128)."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHARES = (0.2, 0.3, 0.5, 0.99)  # of the whole field, whose squares are measured
COUNT, SIZE = 4, 224
PLAIN = "plain"


class ExplainError(ValueError):
    """What was asked for cannot be shown; the message says why."""


def as_map(out: Tensor, channels: int | None = None, prefix: int = 0) -> Tensor:
    """Return as a map (B, C, H, W) a stage's output: a map, (B, H, W, C), or tokens (B, prefix + N, C) of a square.

    Of four dimensions the last are the channels where they alone are as many as `channels`. ExplainError for others.
    """
    if out.dim() == 4:
        last = channels is not None and out.shape[1] != channels and out.shape[3] == channels
        return out.permute(0, 3, 1, 2) if last else out
    if out.dim() == 3:
        tokens = out[:, prefix:]
        side = math.isqrt(tokens.shape[1])
        if side > 0 and side * side == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, (side, side))
    raise ExplainError(f"a stage's output of shape {tuple(out.shape)} is neither a map nor the tokens of a square grid")


def stage_of(model: nn.Module, name: str | None = None) -> tuple[str, nn.Module, Callable[[Tensor], Tensor]]:
    """Return a stage's name, by default that of timm's last, its module, and what makes a map of its output."""
    known = {info["module"]: info["num_chs"] for info in getattr(model, "feature_info", None) or ()}
    if name is None:
        if not known:
            raise ExplainError(f"{type(model).__name__} does not say what its stages are: name one with --stage")
        name = [*known][-1]
    try:
        stage = model.get_submodule(name)
    except AttributeError as error:
        raise ExplainError(f"no stage {name!r}; there are {', '.join(known) or 'those of named_modules()'}") from error
    return name, stage, partial(as_map, channels=known.get(name), prefix=getattr(model, "num_prefix_tokens", 0))


def receptive_field(model: nn.Module, images: Tensor, stage: str | None = None) -> Tensor:
    """Return the effective receptive field (H, W) of a stage's central position, over images (B, 3, H, W), its sum one:
    the mean over images of the size of the gradient of that position's sum over channels (arXiv 1701.04128)."""
    _, module, to_map = stage_of(model, stage)
    outs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, __, out: outs.append(to_map(out)))
    try:
        images = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            model(images)
            out = outs[0]
            central = out[:, :, out.shape[2] // 2, out.shape[3] // 2]
            (gradient,) = torch.autograd.grad(central.sum(), images)
    finally:
        hook.remove()
    field = gradient.abs().sum(1).mean(0)
    if not field.sum() > 0:
        raise ExplainError("nothing of the image reaches the stage: its gradient is zero, or not a number")
    return field / field.sum()


def square_side(field: Tensor, share: float) -> float:
    """Return the side, of the image's longer one, of the smallest square around a field's centre that holds a share of
    the field (H, W)."""
    field = field.double()
    height, width = field.shape
    rows, columns = torch.arange(height).to(field), torch.arange(width).to(field)
    total = field.sum()
    middle = (field.sum(1) @ rows / total, field.sum(0) @ columns / total)
    # of the square that a pixel's far edge lies on
    sides = 2 * torch.maximum((rows - middle[0]).abs()[:, None], (columns - middle[1]).abs()[None, :]) + 1
    ordered, order = sides.flatten().sort()
    held = field.flatten()[order].cumsum(0)
    index = min(int((held < share * held[-1]).sum()), field.numel() - 1)
    return min(1.0, float(ordered[index]) / max(height, width))


def grad_cam(model: nn.Module, images: Tensor, stage: str | None = None) -> Tensor:
    """Return Grad-CAM (B, H, W) in [0, 1] of a stage for the class that the model finds in each image (B, 3, H, W).

    ImportError without grad-cam.
    """
    from pytorch_grad_cam import GradCAM

    _, module, to_map = stage_of(model, stage)
    with GradCAM(model=model, target_layers=[module], reshape_transform=to_map) as cam:
        return torch.from_numpy(cam(input_tensor=images, targets=None))


def draw_cams(figure: Any, photographs: Sequence[Tensor], cams: Mapping[str, Tensor]) -> None:
    """Fill a figure: a row of each model's Grad-CAM, over photographs (3, H, W) in [0, 1]."""
    axes = figure.subplots(1 + len(cams), len(photographs), squeeze=False)
    for column, photograph in enumerate(photographs):
        axes[0][column].imshow(photograph.permute(1, 2, 0).numpy())
        for row, cam in enumerate(cams.values(), start=1):
            axes[row][column].imshow(photograph.permute(1, 2, 0).numpy())
            axes[row][column].imshow(cam[column].numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=1)
    for row, name in enumerate(("photograph", *cams)):
        axes[row][0].set_ylabel(name, fontsize=8)
    _without_ticks(axes)


def draw_fields(figure: Any, fields: Mapping[str, Tensor]) -> None:
    """Fill a figure: the receptive fields (H, W) side by side, on one logarithmic scale of their largest."""
    axes = figure.subplots(1, len(fields), squeeze=False)
    top = max(float(field.max()) for field in fields.values())
    for axis, (name, field) in zip(axes[0], fields.items(), strict=True):
        axis.imshow((field / top).clamp_min(1e-4).log10().numpy(), cmap="viridis", vmin=-4, vmax=0)
        axis.set_title(name, fontsize=8)
    _without_ticks(axes)


def _without_ticks(axes: Any) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m fastattn explain-model",
        description="Show what a stage of a network looks at, plain and with an attention: Grad-CAM over photographs "
        "and the effective receptive field.",
    )
    made.add_argument("backbone", help="a name that models.create takes, of timm")
    made.add_argument("--attention", required=True, help="what stands in it")
    made.add_argument("--stage", metavar="NAME", help="of the module whose output is explained (default: the last)")
    made.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of the network with the attention")
    made.add_argument("--plain-checkpoint", type=Path, metavar="FILE", help="weights of the plain network")
    made.add_argument("--pretrained", action="store_true", help="timm's weights where no checkpoint is named")
    made.add_argument("--num-classes", type=int, metavar="N", help="of the checkpoints (default: the backbone's)")
    made.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"photographs (default: {COUNT})")
    made.add_argument("--size", type=int, default=SIZE, metavar="N", help=f"their side (default: {SIZE})")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    return made


def networks(options: argparse.Namespace) -> dict[str, nn.Module]:
    """The plain network and that with the attention, by name, for inference."""
    from .models import create

    shared = {"pretrained": options.pretrained}
    if options.num_classes is not None:
        shared["num_classes"] = options.num_classes
    made = {}
    for name, attention, path in (
        (PLAIN, None, options.plain_checkpoint),
        (options.attention, options.attention, options.checkpoint),
    ):
        torch.manual_seed(0)
        made[name] = create(options.backbone, attention, checkpoint_path=path, **shared).eval()
    return made


def run(options: argparse.Namespace) -> list[Path]:
    """Write the pictures and their figures, and return their paths; ExplainError, ImportError, OSError."""
    from .bench.photographs import MEAN, STD, photographs
    from .report.plots import picture

    if options.count < 1 or options.size < 1:
        raise ExplainError("--count and --size must be positive")
    if not options.pretrained and None in (options.checkpoint, options.plain_checkpoint):
        print("weights that no checkpoint brings are random: the pictures say nothing of them", file=sys.stderr)
    images = photographs(options.count, options.size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    models = networks(options)
    names = {name: stage_of(model, options.stage)[0] for name, model in models.items()}
    cams = {name: grad_cam(model, images, names[name]) for name, model in models.items()}
    fields = {name: receptive_field(model, images, names[name]) for name, model in models.items()}
    where = f"{options.backbone}, {names[PLAIN]}, {options.count} photographs of {options.size} x {options.size}"
    shown = [*((images * std + mean).clamp(0, 1))]
    drawn = [
        picture(
            "grad-cam", "Grad-CAM", where, 1.0 + 2 * (1 + len(cams)), partial(draw_cams, photographs=shown, cams=cams)
        ),
        picture("receptive-field", "Effective receptive field", where, 4.5, partial(draw_fields, fields=fields)),
    ]
    sides = {name: {str(share): square_side(field, share) for share in SHARES} for name, field in fields.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    paths = []
    for plot in drawn:
        paths.append(options.output / f"{plot.name}.png")
        paths[-1].write_bytes(plot.png)
    paths.append(options.output / "receptive-field.json")
    facts = {"backbone": options.backbone, "stage": names[PLAIN], "size": options.size, "sides": sides}
    paths[-1].write_text(json.dumps(facts, indent=2) + "\n")
    for name, by_share in sides.items():
        parts = ", ".join(f"{float(share):.0%} in {side:.1%}" for share, side in by_share.items())
        print(f"{name}: of the field {parts} of the image's side")
    return paths


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    try:
        for path in run(options):
            print(path)
    except ImportError as error:
        print(f"{error}: pip install 'fastattn[explain]'", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
