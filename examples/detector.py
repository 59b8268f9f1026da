"""Detect with SSD300 whose pyramid goes through CFSAM, then train it one step: random images, nothing is downloaded.

    python examples/detector.py [--quick] [--batch 4]

A pyramid of your own takes the module alone: `fastattn.CFSAM(channels)` maps a list of maps to one of the same shapes.
"""

import argparse
import time

import torch

import fastattn
from fastattn import models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scene(size: int = 300) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return an image (3, size, size) of noise with one bright square in it, and its box and label."""
    image = torch.rand(3, size, size) * 0.2
    side = int(torch.randint(size // 6, size // 2, ()))
    left, top = torch.randint(0, size - side, (2,)).tolist()
    image[:, top : top + side, left : left + side] += 0.7
    box = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32)
    return image.to(DEVICE), {"boxes": box.to(DEVICE), "labels": torch.ones(1, dtype=torch.int64, device=DEVICE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one image")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = models.create("ssd300_vgg16", attention="cfsam", num_classes=2).to(DEVICE)
    images, targets = zip(*[scene() for _ in range(1 if options.quick else options.batch)], strict=True)

    cfsam = next(module for module in model.modules() if isinstance(module, fastattn.CFSAM))
    maps = [torch.empty(1, channels, 8, 8, device=DEVICE) for channels in cfsam.in_channels]
    print(fastattn.explain(cfsam, maps))

    model.eval()
    with torch.no_grad():
        started = time.perf_counter()
        found = model(images)
    counts = [len(each["boxes"]) for each in found]
    print(f"{len(images)} images in {time.perf_counter() - started:.2f} s: {counts} boxes")

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = model(images, targets)
    sum(losses.values()).backward()
    optimizer.step()
    print("one step of training:", ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))


if __name__ == "__main__":
    main()
