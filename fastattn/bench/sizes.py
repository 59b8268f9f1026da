"""The sizes that the papers' networks give the modules, and the words for what is done with them."""

import torch

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
MEMORY_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}

# (C, H, W) where SCSA sits in the four stages of ResNet-50 at 224 x 224.
STAGES = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))

# (channels, side) of SSD300's levels: 1940 tokens.
SSD_LEVELS = ((512, 38), (1024, 19), (512, 10), (256, 5), (256, 3), (256, 1))

# LGA's channels, heads and side of the map: MobileNetV3, ResNet-18 and YOLOv8n at 640 x 640, and finer maps.
LGA_SIZES = ((24, 6, 20), (128, 8, 20), (256, 16, 20), (256, 16, 40), (64, 8, 80))

# ACP's channels and side of the map, CAT's tokens, concepts and channels: ViT-Tiny, Swin-Tiny, and finer maps.
ACP_SIZES = ((192, 14), (96, 56))
CAT_SIZES = ((3136, 64, 192), (16384, 64, 96), (3136, 256, 192))

# What is done with a case, and how it reaches a GPU.
FORWARD, TRAINING = WORKS = ("forward", "forward + backward")
LAUNCHES, GRAPH = "launches", "graph"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
