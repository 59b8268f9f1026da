"""Where an interaction stands in timm's vision transformers: at the input of every block, before its first norm.

A block gets it as a child named `interaction` and calls it from a hook, so that its own parameters keep their names.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

MakeInteraction = Callable[..., nn.Module]  # channels, num_prefix_tokens -> a module on tokens and their grid's size


def put_before_vit_blocks(model: nn.Module, make: MakeInteraction) -> None:
    """On the tokens of a ViT, of which those of the class and the registers come first."""
    from timm.models.vision_transformer import VisionTransformer

    for part in list(model.modules()):
        if isinstance(part, VisionTransformer):
            grid = Grid(part.patch_embed)
            if part.dynamic_img_size:
                part.patch_embed.register_forward_hook(grid.see)
            for block in part.blocks:
                block.interaction = make(part.embed_dim, num_prefix_tokens=part.num_prefix_tokens)
                block.register_forward_pre_hook(partial(interact, grid))


def put_before_swin_blocks(model: nn.Module, make: MakeInteraction) -> None:
    """On the maps of a Swin, which are its tokens."""
    from timm.models.swin_transformer import SwinTransformerBlock

    for block in list(model.modules()):
        if isinstance(block, SwinTransformerBlock):
            block.interaction = make(block.dim, num_prefix_tokens=0)
            block.register_forward_pre_hook(interact_on_map)


class Grid:
    """The size of a ViT's grid of patches: of its images, or where these may be of any size, of the last ones."""

    def __init__(self, patch_embed: Any):
        self.patch_embed = patch_embed
        self.seen: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.seen or self.patch_embed.grid_size

    def see(self, patch_embed: nn.Module, args: tuple, out: Tensor) -> None:
        """Keep the size of embedded patches (B, H, W, C)."""
        self.seen = out.shape[1], out.shape[2]


def interact(grid: Grid, block: nn.Module, args: tuple) -> tuple:
    """The arguments of a block on tokens (B, N, C), the first of them after the interaction."""
    x, *others = args
    return block.interaction(x, grid.size), *others


def interact_on_map(block: nn.Module, args: tuple) -> tuple:
    """The arguments of a block on a map (B, H, W, C), the first of them after the interaction."""
    x, *others = args
    size = x.shape[1], x.shape[2]
    return block.interaction(x.flatten(1, 2), size).unflatten(1, size), *others
