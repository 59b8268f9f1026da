"""Real photographs, as scikit-image and scikit-learn ship them in their wheels: nothing is downloaded."""

import torch
import torch.nn.functional as F
from torch import Tensor

TURNS = 8  # of mirroring and cropping, after which the photographs repeat themselves
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


def originals() -> list[Tensor]:
    """Eight photographs (3, H, W) in [0, 1]: a portrait, a cat, a cup, a rocket, an eye, galaxies, a
    temple, a flower."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    shots = [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        data.retina(),
        data.hubble_deep_field(),
    ]
    shots += [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    return [torch.tensor(shot).permute(2, 0, 1).float() / 255 for shot in shots]


def photographs(batch: int, size: int = 224) -> Tensor:
    """A batch (batch, 3, size, size), cropped square in the middle, resized and normalised as for
    ImageNet; from the ninth image on the same photographs again, mirrored and ever more tightly
    cropped, from the sixty-fifth on all these again."""
    sources = originals()
    images = []
    for index in range(batch):
        image, turn = sources[index % len(sources)], index // len(sources) % TURNS
        side = int(min(image.shape[1:]) * 0.85**turn)
        top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
        square = image[:, top : top + side, left : left + side]
        square = square.flip(2) if turn % 2 else square
        images.append(F.interpolate(square[None], (size, size), mode="bilinear", antialias=True)[0])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.stack(images) - mean) / std


def noise(batch: int, size: int = 224) -> Tensor:
    """A batch (batch, 3, size, size) of smooth patches with grain, where the packages with photographs may be
    missing."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn((batch, 3, 14, 14), generator=generator)
    smooth = F.interpolate(patches, (size, size), mode="bilinear")
    return smooth + 0.2 * torch.randn((batch, 3, size, size), generator=generator)
