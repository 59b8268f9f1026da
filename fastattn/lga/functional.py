"""Local-global attention on plain tensors: validation, the choice of a backend, and the call."""

from collections.abc import Sequence

from torch import Tensor

from ..core.backends import serving, without_autocast
from ..core.checks import check_affines, check_heads, check_map, check_not_empty, check_tensor
from ..core.reference import Affine
from ..core.sharded import by_shards
from . import operation, reference
from .reference import CONTRACTIONS, Branch, Separable

BRANCHES = ("both", "local", "global")
# A scale's stride is twice the one before: at 2 ** 16, beyond any map, oneDNN's bfloat16 convolution ends the process
MAX_SCALES = 16


@by_shards("x")
def local_global_attention(
    x: Tensor,
    scales: Sequence[Separable],
    scale_attention: Affine,
    position_encoding: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
    *,
    num_heads: int,
    contraction: str = "paper",
    backend: str | None = None,
) -> Tensor:
    """Attend to local and global features of x (B, D, H, W) (arXiv 2411.09604, eq. 1-15).

    `scales` and `branches` hold convolutions, see `fastattn.lga.reference`; position_encoding is (1, D, h, w).
    ValueError for an input that does not fit them; RuntimeError with the reasons where a named backend cannot serve.
    """
    _check_parameters(scales, scale_attention, position_encoding, branches, out_conv)
    weight = out_conv[0]
    check_map(x, weight.shape[0])
    check_not_empty(x)
    check_heads(weight.shape[0], num_heads, "embed_dim")
    check_scales(len(scales))
    check_contraction(contraction)
    maps = max(len(scales), sum(len(branch.convs) for branch in branches))
    facts = weight.shape[0] // num_heads, maps, contraction == "spatial"
    name, dtype = serving("lga", x, weight.dtype, backend, *facts)
    arguments = (x, scales, scale_attention, position_encoding, branches, out_conv)
    if name == "reference" or x.shape[0] == 0:
        return reference.local_global_attention(*arguments, num_heads=num_heads, contraction=contraction)
    with without_autocast(x):
        return operation.local_global_attention(*arguments, num_heads, contraction, dtype, name)


def _check_parameters(
    scales: Sequence[Separable],
    scale_attention: Affine,
    position_encoding: Tensor,
    branches: Sequence[Branch],
    out_conv: Affine,
) -> None:
    check_affines("out_conv", 4, [out_conv])
    check_affines("scale_attention", 4, [scale_attention])
    check_affines("scales", 4, [affine for scale in scales for affine in scale])
    check_affines("branches", 4, [affine for convs, _ in branches for conv in convs for affine in conv])
    check_tensor(position_encoding, "position_encoding")
    if position_encoding.dim() != 4:
        raise ValueError(f"position_encoding must have 4 dimensions, got shape {tuple(position_encoding.shape)}")
    if not branches:
        raise ValueError("branches is empty, expected at least one")
    for convs, alpha in branches:
        check_tensor(alpha, "alpha")
        if alpha.numel() != 1 or not convs:
            raise ValueError(
                f"a branch has {len(convs)} convs and {alpha.numel()} alphas, expected convs and one alpha"
            )


def check_scales(count: int) -> None:
    """ValueError unless this is a number of scales that a map can have."""
    if not 1 <= count <= MAX_SCALES:
        expected = "at least 1" if count < 1 else f"at most {MAX_SCALES}, since strides double from scale to scale"
        raise ValueError(f"num_scales must be {expected}, got {count}")


def check_contraction(contraction: str) -> None:
    """ValueError unless this is a contraction."""
    if contraction not in CONTRACTIONS:
        raise ValueError(f"contraction must be one of {', '.join(CONTRACTIONS)}, got {contraction!r}")


def check_options(
    embed_dim: int,
    num_heads: int,
    local_kernel_sizes: Sequence[int],
    global_kernel_size: int,
    height: int,
    width: int,
    num_scales: int,
    contraction: str,
    branches: str,
) -> None:
    """ValueError unless these are options of LocalGlobalAttention."""
    check_heads(embed_dim, num_heads, "embed_dim")
    if branches not in BRANCHES:
        raise ValueError(f"branches must be one of {', '.join(BRANCHES)}, got {branches!r}")
    if branches != "global" and not local_kernel_sizes:
        raise ValueError(f"local_kernel_sizes must name at least one kernel, got {tuple(local_kernel_sizes)}")
    kernels = [*(local_kernel_sizes if branches != "global" else ()), *([global_kernel_size] * (branches != "local"))]
    if any(k < 1 or k % 2 == 0 for k in kernels):
        raise ValueError(
            "kernel sizes must be odd, got "
            f"local_kernel_sizes={tuple(local_kernel_sizes)}, global_kernel_size={global_kernel_size}"
        )
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, got {height} and {width}")
    check_scales(num_scales)
    check_contraction(contraction)
