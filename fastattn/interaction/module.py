"""Interaction before self-attention (arXiv 2412.18778): ACP, CAT, and both on the tokens of a vision transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.module import FastModule, affine
from ..core.reference import Affine, resize_nearest
from .functional import (
    aggressive_conv_pooling,
    check_acp_input,
    check_acp_options,
    check_cat_options,
    check_grid,
    check_prefix,
    check_tokens,
    conceptual_attention,
    enhanced_interaction,
)

for _name in ("aggressive_conv_pooling", "conceptual_attention", "enhanced_interaction"):
    torch.fx.wrap(_name)  # FX records the call and takes no step into it


class AggressiveConvPooling(FastModule):
    """Aggressive convolution pooling of x (B, dim, H, W): it is aggregated with what `num_layers` depthwise
    convolutions make of it, each followed by max pooling, resized to (H, W) (arXiv 2412.18778).

    Depthwise convolution and max pooling in turns, about two of each, are the paper's. Kernel size, pool size, the
    aggregation, by a 1x1 convolution of the concatenation ("concat") or of the sum ("sum"), and nearest-neighbour
    resizing are a reconstruction.

    ValueError for options that do not fit; in forward, for an input that is not real floating point of shape
    (B, dim, H, W), and for one of which a layer would have to pool a single pixel.
    """

    operation = "acp"

    def __init__(
        self,
        dim: int,
        num_layers: int = 2,
        kernel_size: int = 3,
        pool_size: int = 2,
        aggregate: str = "concat",
    ):
        super().__init__()
        check_acp_options(dim, num_layers, kernel_size, pool_size, aggregate)
        self.dim, self.num_layers, self.kernel_size = dim, num_layers, kernel_size
        self.pool_size, self.aggregate = pool_size, aggregate
        padding = kernel_size // 2
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size, padding=padding, groups=dim) for _ in range(num_layers)
        )
        self.proj = nn.Conv2d(dim * (num_layers + 1) if aggregate == "concat" else dim, dim, 1)
        self._note_children()

    def operands(self) -> tuple[list[Affine], Affine]:
        """Return the parameters as the operation takes them."""
        return [*map(affine, self.convs)], affine(self.proj)

    def _through_children(self, x: Tensor) -> Tensor:
        check_acp_input(x, self.dim, self.num_layers, self.pool_size)
        levels = [x]
        for conv in self.convs:
            levels.append(F.max_pool2d(conv(levels[-1]), self.pool_size, self.pool_size, ceil_mode=True))
        levels = [resize_nearest(level, *x.shape[2:]) for level in levels]
        return self.proj(sum(levels) if self.aggregate == "sum" else torch.cat(levels, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        return aggressive_conv_pooling(
            x, *self.operands(), pool_size=self.pool_size, aggregate=self.aggregate, backend=self.backend
        )

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, num_layers={self.num_layers}, kernel_size={self.kernel_size}, pool_size={self.pool_size}, "
            f"aggregate={self.aggregate!r}"
        )


class ConceptualAttention(FastModule):
    """Conceptual attention among the tokens x (B, N, dim): `num_concepts` concept tokens are gathered from all tokens,
    and given back to them (arXiv 2412.18778).

    Concept tokens, attention maps that align visual tokens with them, and a flow back are the paper's. That one matrix
    of scores serves both directions, by a softmax over the tokens and one over the concepts, and the residual are a
    reconstruction.

    ValueError for options that do not fit; in forward, for an input that is not real floating point of shape
    (B, N, dim) with at least one token.
    """

    operation = "cat"

    def __init__(self, dim: int, num_concepts: int = 64):
        super().__init__()
        check_cat_options(dim, num_concepts)
        self.dim, self.num_concepts = dim, num_concepts
        self.score = nn.Linear(dim, num_concepts, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self._note_children()

    def operands(self) -> tuple[Tensor, Affine, Affine]:
        """Return the parameters as the operation takes them."""
        return self.score.weight, affine(self.value), affine(self.out)

    def _through_children(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim)
        scores = self.score(x)  # [B, N, K]
        concepts = scores.softmax(dim=1).mT @ self.value(x)  # [B, K, C]
        return x + self.out(scores.softmax(dim=2) @ concepts)

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        return conceptual_attention(x, *self.operands(), backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.dim}, num_concepts={self.num_concepts}"


class EnhancedInteraction(FastModule):
    """ACP, then CAT, on tokens x (B, num_prefix_tokens + H * W, dim), before a transformer block (arXiv 2412.18778).

    x' = x + ACP(x) on the grid `size` = (H, W), which prefix tokens (of a class, registers) pass by; then CAT(x') of
    all tokens, whose own residual is the only other one. The order is the paper's; the residual around ACP and what
    becomes of prefix tokens are a reconstruction.

    ValueError for options that do not fit; in forward, as of `AggressiveConvPooling` and `ConceptualAttention`, and for
    a number of tokens that is not num_prefix_tokens + H * W.
    """

    operation = "interaction"

    def __init__(
        self,
        dim: int,
        num_layers: int = 2,
        kernel_size: int = 3,
        pool_size: int = 2,
        aggregate: str = "concat",
        num_concepts: int = 64,
        num_prefix_tokens: int = 0,
    ):
        super().__init__()
        check_prefix(num_prefix_tokens)
        self.dim, self.num_layers, self.pool_size = dim, num_layers, pool_size
        self.num_prefix_tokens = num_prefix_tokens
        self.acp = AggressiveConvPooling(dim, num_layers, kernel_size, pool_size, aggregate)
        self.cat = ConceptualAttention(dim, num_concepts)
        self._note_children()

    def _through_children(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        check_tokens(x, self.dim)
        check_grid(x, size, self.num_prefix_tokens)
        prefix, grid = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        wider = self.acp(grid.mT.unflatten(2, size))
        return self.cat(torch.cat([prefix, grid + wider.flatten(2).mT], dim=1))

    def arguments_of(self, x: Tensor) -> tuple:
        return x, (x.shape[1] - self.num_prefix_tokens, 1)  # of any size

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x, size)
        convs, proj = self.acp.operands()
        score, value, out = self.cat.operands()
        return enhanced_interaction(
            x,
            size,
            convs,
            proj,
            score,
            value,
            out,
            pool_size=self.pool_size,
            aggregate=self.acp.aggregate,
            num_prefix_tokens=self.num_prefix_tokens,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"{self.dim}, num_prefix_tokens={self.num_prefix_tokens}"
