"""Compile a ViT with ACP and CAT as a whole, train it a little, and go on from its checkpoint: nothing is downloaded.

    python examples/vit.py [--quick] [--steps 20]

`torch.compile` takes fastattn's modules into the graph of the network: there is no break in it (`fullgraph=True`).
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from fastattn import models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def create(quick: bool) -> torch.nn.Module:
    """Return timm's ViT-Tiny, or one of its blocks on small images, with an interaction before each self-attention."""
    smaller = {"img_size": 64, "depth": 1} if quick else {}
    return models.create("vit_tiny_patch16_224", attention="interaction", num_classes=10, **smaller).to(DEVICE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="one block, images of 64 x 64, two steps")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = create(options.quick)
    size = 64 if options.quick else 224
    x, y = torch.randn(8, 3, size, size, device=DEVICE), torch.arange(8, device=DEVICE)

    compiled = torch.compile(model, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2 if options.quick else options.steps):
        loss = F.cross_entropy(compiled(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit.pt"
        torch.save(model.state_dict(), path)  # of the model, not of what torch.compile wraps around it
        again = create(options.quick)
        again.load_state_dict(torch.load(path, weights_only=True, map_location=DEVICE))

    with torch.no_grad():
        expected, logits = model.eval()(x), again.eval()(x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    print("the checkpoint gives the same logits")


if __name__ == "__main__":
    main()
