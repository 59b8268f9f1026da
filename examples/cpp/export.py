"""Package ResNet-50 + SCSA for main.cpp: the model, an input, and the output that is expected of it.

python examples/cpp/export.py FOLDER [--model NAME] [--attention NAME] [--batch N] [--size N]
"""

import argparse
from pathlib import Path

import torch

from fastattn import export, models
from fastattn.bench.networks import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description="Package a model for main.cpp")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--attention", default="scsa", help="or none")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, options.size, options.size)
    attention = None if options.attention == "none" else options.attention
    model = prepare(models.create(options.model, attention=attention), x)  # in place of your trained one
    export.to_aoti(model, x, options.folder / "model.pt2")
    with torch.no_grad():
        torch.save(x, options.folder / "input.pt")
        torch.save(model(x), options.folder / "output.pt")
    print(f"written: {options.folder}")


if __name__ == "__main__":
    main()
