"""What stands in timm's vision transformers: an interaction at the input of every block, before its first norm, or an
attention on maps at the output of every block.

A block gets it as a child named `interaction` or `attention` and calls it from a hook, so that its own parameters keep
their names.
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.recomputation import as_first
from ..core.torch_state import backward_pass

MakeInteraction = Callable[..., nn.Module]  # channels, num_prefix_tokens -> a module on tokens and their grid's size
MakeAttention = Callable[..., nn.Module]  # channels -> a module on maps (B, C, H, W) that keeps their shape


def put_before_vit_blocks(model: nn.Module, make: MakeInteraction) -> None:
    """On the tokens of a ViT, of which those of the class and the registers come first."""
    for part, grid in vits(model):
        for block in part.blocks:
            block.interaction = make(part.embed_dim, num_prefix_tokens=part.num_prefix_tokens)
            block.register_forward_pre_hook(partial(interact, grid))


def put_after_vit_blocks(model: nn.Module, make: MakeAttention) -> None:
    """On the output of each block of a ViT, whose grid of tokens is a map; those of the class and the registers pass
    by."""
    for part, grid in vits(model):
        for block in part.blocks:
            block.attention = make(part.embed_dim)
            # before hooks that a feature extractor has there already
            block.register_forward_hook(partial(attend_to_grid, grid, part.num_prefix_tokens), prepend=True)


def put_before_swin_blocks(model: nn.Module, make: MakeInteraction) -> None:
    """On the maps of a Swin, which are its tokens."""
    from timm.models.swin_transformer import SwinTransformerBlock

    for block in list(model.modules()):
        if isinstance(block, SwinTransformerBlock):
            block.interaction = make(block.dim, num_prefix_tokens=0)
            block.register_forward_pre_hook(interact_on_map)


def put_after_swin_blocks(model: nn.Module, make: MakeAttention) -> None:
    """On the output map of each block of a Swin."""
    from timm.models.swin_transformer import SwinTransformerBlock

    for block in list(model.modules()):
        if isinstance(block, SwinTransformerBlock):
            block.attention = make(block.dim)
            block.register_forward_hook(attend_to_map, prepend=True)


class Grid(threading.local):
    """The size of a ViT's grid of patches: of its images, or where these may be of any size, of this thread's last
    ones, and in a checkpoint's recomputation of those of its first run."""

    def __init__(self, patch_embed: Any, of_any_size: bool):  # of each thread anew
        self.patch_embed, self.of_any_size = patch_embed, of_any_size
        self.seen: tuple[int, int] | None = None
        self.seen_in = -1

    def __reduce__(self) -> tuple:
        return Grid, (self.patch_embed, self.of_any_size)

    @property
    def size(self) -> tuple[int, int]:
        return as_first(self._last)

    def _last(self) -> tuple[int, int]:
        """RuntimeError where a backward pass runs blocks again and nothing tells on which images."""
        if self.of_any_size and self.seen_in != backward_pass():
            raise RuntimeError("a checkpoint does not know the size of its images: it takes use_reentrant=False")
        return self.seen or self.patch_embed.grid_size

    def see(self, patch_embed: nn.Module, args: tuple, out: Tensor) -> None:
        """Keep the size of embedded patches (B, H, W, C)."""
        self.seen, self.seen_in = (out.shape[1], out.shape[2]), backward_pass()


def vits(model: nn.Module) -> Iterator[tuple[Any, Grid]]:
    """The vision transformers in a model, each with its grid, which sees its images where they may be of any size;
    ValueError for one that drops patches."""
    from timm.models.vision_transformer import VisionTransformer

    for part in list(model.modules()):
        if isinstance(part, VisionTransformer):
            if not isinstance(part.patch_drop, nn.Identity):
                raise ValueError("patch_drop_rate drops tokens in training, and what is left of a grid is no map")
            grid = Grid(part.patch_embed, part.dynamic_img_size)
            if part.dynamic_img_size:
                part.patch_embed.register_forward_hook(grid.see)
            yield part, grid


def interact(grid: Grid, block: Any, args: tuple) -> tuple:
    """The arguments of a block on tokens (B, N, C), the first of them after the interaction."""
    x, *others = args
    return block.interaction(x, grid.size), *others


def interact_on_map(block: Any, args: tuple) -> tuple:
    """The arguments of a block on a map (B, H, W, C), the first of them after the interaction."""
    x, *others = args
    size = x.shape[1], x.shape[2]
    return block.interaction(x.flatten(1, 2), size).unflatten(1, size), *others


def attend_to_grid(grid: Grid, num_prefix_tokens: int, block: Any, args: tuple, out: Tensor) -> Tensor:
    """The output of a block, (B, N, C), after its attention, which sees the grid's tokens as a map (B, C, H, W): a
    view, mostly channels_last but for the prefix between two images."""
    prefix, tokens = out[:, :num_prefix_tokens], out[:, num_prefix_tokens:]
    map_ = block.attention(tokens.unflatten(1, grid.size).permute(0, 3, 1, 2))
    tokens = map_.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat((prefix, tokens), dim=1) if num_prefix_tokens else tokens


def attend_to_map(block: Any, args: tuple, out: Tensor) -> Tensor:
    """The output of a block, (B, H, W, C), after its attention, which sees it as a channels_last (B, C, H, W)."""
    return block.attention(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
