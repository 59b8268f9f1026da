"""Train a ResNet-18 with SCSA on scikit-learn's handwritten digits, and print its accuracy on those left out.

    python examples/classifier.py [--quick] [--epochs 5]

The 1,797 digits come with scikit-learn: nothing is downloaded. Without a compiler or a GPU the same program runs on
PyTorch's own operators.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import fastattn
from fastattn import models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 32  # pixels: the maps of the four stages are 8, 4, 2 and 1 wide
BATCH = 64


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return the digits as images (3, SIZE, SIZE) with their labels: to train on, and to test on."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    x = F.interpolate(x, size=SIZE, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    x_train, x_test, y_train, y_test = train_test_split(
        x.to(DEVICE), torch.from_numpy(labels).to(DEVICE), test_size=0.2, random_state=0
    )
    return TensorDataset(x_train, y_train), TensorDataset(x_test, y_test)


def accuracy(model: torch.nn.Module, dataset: TensorDataset) -> float:
    """Return the share of a dataset's labels that a model finds."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in DataLoader(dataset, BATCH))
    return right / len(dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one epoch")
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = digits()
    # windows of 7 x 7, SCSA's default, fit the maps of 224 x 224 images, and not those of such small ones
    model = models.create("resnet18", attention="scsa", attention_kwargs={"window_size": 1}, num_classes=10).to(DEVICE)
    first = next(module for module in model.modules() if isinstance(module, fastattn.SCSA))
    print(fastattn.explain(first, torch.empty(BATCH, first.dim, SIZE // 4, SIZE // 4, device=DEVICE)))

    batches = DataLoader(train, BATCH, shuffle=True, drop_last=True)
    steps = (1 if options.quick else options.epochs) * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(steps):
        if step % len(batches) == 0:
            epoch = iter(batches)
        x, y = next(epoch)
        model.train()
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1} of {steps}: loss {loss.item():.3f}")
    update_bn(batches, model)  # batch norm's running averages are behind after so few steps
    print(f"accuracy on {len(test)} digits: {accuracy(model, test):.3f}")


if __name__ == "__main__":
    main()
