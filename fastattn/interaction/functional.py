"""ACP, CAT and both on plain tensors: validation, the choice of a backend, and the call."""

from collections.abc import Sequence

from torch import Tensor

from ..core.backends import serving, without_autocast
from ..core.checks import check_affines, check_map, check_tensor
from ..core.reference import Affine
from ..core.sharded import by_shards
from . import operation as composition
from . import reference
from .reference import AGGREGATES, level_sizes


@by_shards("x")
def aggressive_conv_pooling(
    x: Tensor,
    convs: Sequence[Affine],
    proj: Affine,
    *,
    pool_size: int = 2,
    aggregate: str = "concat",
    backend: str | None = None,
) -> Tensor:
    """Aggregate x (B, C, H, W) with its convolved and pooled levels (arXiv 2412.18778; a reconstruction, see
    `fastattn.interaction.reference`).

    `convs` are depthwise convolutions, (C, 1, k, k) and (C), `proj` the 1x1 convolution of the concatenation or the
    sum. ValueError for an input that does not fit them, and for a layer that would pool a single pixel; RuntimeError
    with the reasons where a named backend cannot serve.
    """
    check_affines("convs", 4, convs)
    check_affines("proj", 4, [proj])
    check_acp_input(x, (convs[0] if convs else proj)[0].shape[0], len(convs), pool_size)
    _check_projection(convs, proj, aggregate)
    name, dtype = serving("acp", x, proj[0].dtype, backend, len(convs), pool_size, 0)
    if name == "reference" or x.shape[0] == 0:
        return reference.aggressive_conv_pooling(x, convs, proj, pool_size=pool_size, aggregate=aggregate)
    with without_autocast(x):
        return composition.aggressive_conv_pooling(x, convs, proj, pool_size, dtype, name)


@by_shards("x")
def conceptual_attention(x: Tensor, score: Tensor, value: Affine, out: Affine, *, backend: str | None = None) -> Tensor:
    """Align tokens x (B, N, C) with K concepts, whose scores have the weight (K, C), by attention over the tokens and
    over the concepts (arXiv 2412.18778; a reconstruction, see `fastattn.interaction.reference`).

    `value` and `out` are linear maps C -> C. ValueError for tokens that do not fit; RuntimeError with the reasons where
    a named backend cannot serve.
    """
    _check_concepts(score, value, out)
    check_tokens(x, score.shape[1])
    name, dtype = serving("cat", x, score.dtype, backend, 0, 0, score.shape[1])
    if name == "reference" or x.shape[0] == 0:
        return reference.conceptual_attention(x, score, value, out)
    with without_autocast(x):
        return composition.conceptual_attention(x, score, value, out, dtype, name)


@by_shards("x")
def enhanced_interaction(
    x: Tensor,
    size: tuple[int, int],
    convs: Sequence[Affine],
    proj: Affine,
    score: Tensor,
    value: Affine,
    out: Affine,
    *,
    pool_size: int = 2,
    aggregate: str = "concat",
    num_prefix_tokens: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Add ACP to the tokens of a grid of `size`, (H, W), then let all tokens (B, num_prefix_tokens + H * W, C) meet at
    concepts (arXiv 2412.18778; a reconstruction, see `fastattn.interaction.reference`).

    The parameters are those of `aggressive_conv_pooling` and `conceptual_attention`, and so are the errors; ValueError
    for another number of tokens, too.
    """
    _check_concepts(score, value, out)
    check_affines("convs", 4, convs)
    check_affines("proj", 4, [proj])
    check_tokens(x, score.shape[1])
    check_grid(x, size, num_prefix_tokens)
    _check_levels(*size, len(convs), pool_size)
    _check_projection(convs, proj, aggregate)
    name, dtype = serving("interaction", x, score.dtype, backend, len(convs), pool_size, score.shape[1])
    if name == "reference" or x.shape[0] == 0:
        return reference.enhanced_interaction(
            x, size, convs, proj, score, value, out,
            pool_size=pool_size, aggregate=aggregate, num_prefix_tokens=num_prefix_tokens,
        )  # fmt: skip
    with without_autocast(x):
        return composition.enhanced_interaction(
            x, size, convs, proj, (score, value, out), pool_size, num_prefix_tokens, dtype, name
        )


def check_acp_options(dim: int, num_layers: int, kernel_size: int, pool_size: int, aggregate: str) -> None:
    """ValueError unless these are options of AggressiveConvPooling."""
    _check_dim(dim)
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    if pool_size < 1:
        raise ValueError(f"pool_size must be at least 1, got {pool_size}")
    _check_aggregate(aggregate)


def check_cat_options(dim: int, num_concepts: int) -> None:
    """ValueError unless these are options of ConceptualAttention."""
    _check_dim(dim)
    if num_concepts < 1:
        raise ValueError(f"num_concepts must be at least 1, got {num_concepts}")


def check_acp_input(x: Tensor, channels: int, num_layers: int, pool_size: int) -> None:
    """ValueError unless x is a map (B, channels, H, W) that every layer can pool."""
    check_map(x, channels)
    _check_levels(x.shape[2], x.shape[3], num_layers, pool_size)


def check_grid(x: Tensor, size: tuple[int, int], num_prefix_tokens: int) -> None:
    """ValueError unless the tokens x are those of a grid (H, W) behind the prefix tokens."""
    height, width = size
    check_prefix(num_prefix_tokens)
    if x.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"x has {x.shape[1]} tokens, expected {num_prefix_tokens} + {height} * {width} = "
            f"{num_prefix_tokens + height * width}"
        )


def check_prefix(num_prefix_tokens: int) -> None:
    """ValueError unless there can be so many prefix tokens."""
    if num_prefix_tokens < 0:
        raise ValueError(f"num_prefix_tokens must not be negative, got {num_prefix_tokens}")


def _check_dim(dim: int) -> None:
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")


def _check_aggregate(aggregate: str) -> None:
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got {aggregate!r}")


def _check_levels(height: int, width: int, num_layers: int, pool_size: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"the map is {height} x {width}: there is nothing to pool")
    if pool_size < 1:
        raise ValueError(f"pool_size must be at least 1, got {pool_size}")
    if num_layers < 1:
        raise ValueError("convs has no layer, expected at least 1")
    for i, (rows, columns) in enumerate(level_sizes(height, width, num_layers, pool_size)[:-1]):
        if rows == 1 and columns == 1:
            raise ValueError(
                f"layer {i} of {num_layers} would pool a map of 1 x 1: a map of {height} x {width} is too small for "
                f"{num_layers} layers with pool_size {pool_size}"
            )


def _check_projection(convs: Sequence[Affine], proj: Affine, aggregate: str) -> None:
    """ValueError unless the convolutions are depthwise with odd kernels, and the projection takes their aggregate."""
    _check_aggregate(aggregate)
    channels = convs[0][0].shape[0]
    for i, (weight, _) in enumerate(convs):
        if tuple(weight.shape[:2]) != (channels, 1) or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
            raise ValueError(f"convs {i} has a weight {tuple(weight.shape)}, expected ({channels}, 1, k, k) with odd k")
    expected = channels, channels if aggregate == "sum" else channels * (len(convs) + 1)
    if tuple(proj[0].shape[:2]) != expected:
        found = f"{proj[0].shape[1]} inputs and {proj[0].shape[0]} outputs"
        raise ValueError(f"proj has {found}, expected {expected[1]} and {expected[0]}")


def check_tokens(x: Tensor, channels: int) -> None:
    """Refuse x unless it is real floating point of shape (B, N, channels) with a token."""
    check_tensor(x, "x")
    if x.dim() != 3:
        raise ValueError(f"x must have 3 dimensions (B, N, C), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be real floating point, got {x.dtype}")
    if x.shape[2] != channels:
        raise ValueError(f"x has {x.shape[2]} channels, expected {channels}")
    if x.shape[1] < 1:
        raise ValueError("x has no tokens")


def _check_concepts(score: Tensor, value: Affine, out: Affine) -> None:
    """ValueError unless score (K, C) has a concept, and value and out are linear maps C -> C."""
    check_affines("score", 2, [(score, None)])
    check_affines("value", 2, [value])
    check_affines("out", 2, [out])
    concepts, channels = score.shape
    if concepts < 1:
        raise ValueError(f"score has {concepts} concepts, expected at least 1")
    for name, (weight, bias) in (("value", value), ("out", out)):
        if weight.shape != (channels, channels) or (bias is not None and bias.shape != (channels,)):
            shapes = f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
            raise ValueError(f"{name} has shapes {shapes}, expected {(channels, channels)} and {(channels,)}")
