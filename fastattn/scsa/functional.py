"""SCSA and its parts on plain tensors: validation, the choice of a backend, and the call.

Shapes: x (B, C, H, W); four convolution weights (C/4, 1, k) with odd k and four biases (C/4); norm_h, norm_w
and norm are (weight, bias) pairs of (C); the weights of q, k and v (C, 1, 1, 1) and their optional biases
(C); conv_d_weight (C, C * window_size**2, 1, 1), for `down_sample_mode="recombination"` alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.backends import serving
from ..core.checks import check_affines, check_map, check_not_empty, check_tensor
from ..core.sharded import by_shards
from ..core.torch_state import autocasts
from . import operation as ops
from . import reference

DOWN_SAMPLE_MODES = ("avg_pool", "max_pool", "recombination")
GATE_LAYERS = ("sigmoid", "softmax")


def smsa(
    x: Tensor,
    conv_weights: Sequence[Tensor],
    conv_biases: Sequence[Tensor],
    norm_h: Sequence[Tensor],
    norm_w: Sequence[Tensor],
    *,
    gate_layer: str = "sigmoid",
    backend: str | None = None,
) -> Tensor:
    """Gate x (B, C, H, W) by its rows and its columns: SMSA (arXiv 2407.05128, eq. 1-7).

    ValueError for bad shapes, dtypes or options; RuntimeError with the reasons where a named backend cannot
    serve.
    """
    check_affines("norm_h", 1, [norm_h])
    check_affines("norm_w", 1, [norm_w])
    check_affines("conv_weights", 3, [(weight, None) for weight in conv_weights])
    channels = norm_h[0].shape[0]
    check_spatial(channels, [w.shape[-1] for w in conv_weights], gate_layer)
    params = [*conv_weights, *conv_biases, *norm_h, *norm_w]
    _check_params(params, _spatial_shapes(channels, conv_weights))
    return run(ops.SMSA, x, channels, params, (gate_layer,), backend=backend)


def pcsa(
    x: Tensor,
    norm: Sequence[Tensor],
    qkv_weights: Sequence[Tensor],
    qkv_biases: Sequence[Tensor] | None = None,
    *,
    head_num: int = 1,
    window_size: int = 7,
    down_sample_mode: str = "avg_pool",
    gate_layer: str = "sigmoid",
    conv_d_weight: Tensor | None = None,
    attn_drop_ratio: float = 0.0,
    training: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Gate the channels of x (B, C, H, W) by self-attention among them: PCSA (arXiv 2407.05128, eq. 8-12).

    ValueError for bad shapes, dtypes or options; RuntimeError with the reasons where a named backend cannot
    serve.
    """
    check_affines("norm", 1, [norm])
    channels = norm[0].shape[0]
    options = (head_num, window_size, down_sample_mode, gate_layer)
    check_channel(channels, *options, attn_drop_ratio)
    params = [*norm, *qkv_weights, *(qkv_biases or ())]
    _check_params(params, _channel_shapes(channels, qkv_biases))
    _check_conv_d(conv_d_weight, channels, window_size, down_sample_mode)
    return run(ops.PCSA, x, channels, params, options, conv_d_weight, attn_drop_ratio if training else 0.0, backend)


def scsa(
    x: Tensor,
    conv_weights: Sequence[Tensor],
    conv_biases: Sequence[Tensor],
    norm_h: Sequence[Tensor],
    norm_w: Sequence[Tensor],
    norm: Sequence[Tensor],
    qkv_weights: Sequence[Tensor],
    qkv_biases: Sequence[Tensor] | None = None,
    *,
    head_num: int = 1,
    window_size: int = 7,
    down_sample_mode: str = "avg_pool",
    gate_layer: str = "sigmoid",
    conv_d_weight: Tensor | None = None,
    attn_drop_ratio: float = 0.0,
    training: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Gate x (B, C, H, W) by its rows and columns, then by its channels: SCSA (arXiv 2407.05128, eq. 1-13).

    ValueError for bad shapes, dtypes or options; RuntimeError with the reasons where a named backend cannot
    serve.
    """
    check_affines("norm", 1, [norm])
    check_affines("conv_weights", 3, [(weight, None) for weight in conv_weights])
    channels = norm[0].shape[0]
    options = (head_num, window_size, down_sample_mode, gate_layer)
    check_spatial(channels, [w.shape[-1] for w in conv_weights], gate_layer)
    check_channel(channels, *options, attn_drop_ratio)
    params = [*conv_weights, *conv_biases, *norm_h, *norm_w, *norm, *qkv_weights, *(qkv_biases or ())]
    _check_params(params, _spatial_shapes(channels, conv_weights) + _channel_shapes(channels, qkv_biases))
    _check_conv_d(conv_d_weight, channels, window_size, down_sample_mode)
    return run(ops.SCSA, x, channels, params, options, conv_d_weight, attn_drop_ratio if training else 0.0, backend)


@by_shards("x")
def run(
    operation: ops.Operation,
    x: Tensor,
    channels: int,
    params: Sequence[Tensor],
    options: tuple,
    conv_d_weight: Tensor | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Check x, choose a backend and call it: what the functions above and the modules share.

    `params` and `options` are flat, as in `fastattn.scsa.operation`, and have been checked; `dropout` is 0 unless
    training.
    """
    check_input(x, channels, options[1] if operation.channel else 1)
    drops = True if dropout else False  # noqa: SIM210 (under dynamic=True, bool(dropout) stays symbolic)
    name, _ = serving(operation.name, x, params[0].dtype, backend, conv_d_weight is not None, drops)
    if name == "reference" or x.shape[0] == 0:  # an empty batch is nothing to be fast at
        return _eager(operation, x, params, options, conv_d_weight, dropout, drops)
    dtype = x.dtype
    if autocasts(x.device.type):
        dtype = _autocast_dtype(operation, x.device.type, dtype, options[-1])
        if name == "native":  # writes x's own dtype
            x = x.to(dtype)
    return operation(x, params, *options, dtype, "auto" if torch.compiler.is_exporting() else name)


def _autocast_dtype(operation: ops.Operation, device: str, dtype: torch.dtype, gate_layer: str) -> torch.dtype:
    """Return the dtype that eager gives under autocast: x's, widened by that of the gates.

    On a GPU, group normalisation and softmax give float32 gates; elsewhere gates have autocast's dtype.
    """
    if device == "cuda" and (operation.spatial or gate_layer == "softmax"):
        return torch.float32
    return torch.promote_types(dtype, torch.get_autocast_dtype(device))


def _eager(operation, x, params, options, conv_d_weight, dropout, drops):
    """Call the reference with flat parameters and options."""
    if operation.spatial:
        x = reference.smsa(x, params[:4], params[4:8], params[8:10], params[10:12], gate_layer=options[-1])
        params = params[12:]
    if operation.channel:
        head_num, window_size, down_sample_mode, gate_layer = options
        x = reference.pcsa(
            x,
            params[:2],
            params[2:5],
            params[5:] or None,
            head_num=head_num,
            window_size=window_size,
            down_sample_mode=down_sample_mode,
            gate_layer=gate_layer,
            conv_d_weight=conv_d_weight,
            attn_drop_ratio=dropout,
            training=drops,
        )
    return x


def check_spatial(channels: int, kernel_sizes: Sequence[int], gate_layer: str) -> None:
    """ValueError unless these are options of SMSA."""
    if channels < 4 or channels % 4:
        raise ValueError(f"dim must be divisible by the 4 channel groups, got {channels}")
    if len(kernel_sizes) != 4 or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
        raise ValueError(f"group_kernel_sizes must be four odd sizes, got {tuple(kernel_sizes)}")
    if gate_layer not in GATE_LAYERS:
        raise ValueError(f"gate_layer must be one of {', '.join(GATE_LAYERS)}, got {gate_layer!r}")


def check_channel(
    channels: int,
    head_num: int,
    window_size: int,
    down_sample_mode: str,
    gate_layer: str,
    attn_drop_ratio: float,
) -> None:
    """ValueError unless these are options of PCSA."""
    if head_num < 1 or channels < 1 or channels % head_num:
        raise ValueError(f"dim must be divisible by head_num, got {channels} and {head_num}")
    if window_size < 1 and window_size != -1:
        raise ValueError(f"window_size must be positive, or -1 for a global average, got {window_size}")
    if down_sample_mode not in DOWN_SAMPLE_MODES:
        raise ValueError(f"down_sample_mode must be one of {', '.join(DOWN_SAMPLE_MODES)}, got {down_sample_mode!r}")
    if window_size == -1 and down_sample_mode == "recombination":
        raise ValueError('down_sample_mode="recombination" needs a window: window_size=-1 leaves none')
    if gate_layer not in GATE_LAYERS:
        raise ValueError(f"gate_layer must be one of {', '.join(GATE_LAYERS)}, got {gate_layer!r}")
    if not 0 <= attn_drop_ratio <= 1:
        raise ValueError(f"attn_drop_ratio must lie between 0 and 1, got {attn_drop_ratio}")


def check_input(x: Tensor, channels: int, window: int) -> None:
    """ValueError unless x is a map (B, channels, H, W) of at least a window."""
    check_map(x, channels)
    height, width = x.shape[2:]
    if height < window or width < window:
        raise ValueError(
            f"x is {height} x {width}, smaller than the {window} x {window} window: nothing is left to pool"
        )
    check_not_empty(x)


def _spatial_shapes(channels, conv_weights):
    group = channels // 4
    return [*((group, 1, w.shape[-1]) for w in conv_weights), *[(group,)] * 4, *[(channels,)] * 4]


def _channel_shapes(channels, qkv_biases):
    return [*[(channels,)] * 2, *[(channels, 1, 1, 1)] * 3, *[(channels,)] * (3 if qkv_biases else 0)]


def _check_params(params, shapes):
    for i, p in enumerate(params):
        check_tensor(p, "parameter", i)
    found = [tuple(p.shape) for p in params]
    if found != shapes:
        raise ValueError(f"parameters of shapes {found}, expected {shapes}")


def _check_conv_d(weight, channels, window_size, down_sample_mode):
    expected = (channels, channels * window_size**2, 1, 1) if down_sample_mode == "recombination" else None
    found = None if weight is None else tuple(weight.shape)
    if found != expected:
        raise ValueError(
            f"conv_d_weight of shape {found}, expected {expected} with down_sample_mode={down_sample_mode!r}"
        )
