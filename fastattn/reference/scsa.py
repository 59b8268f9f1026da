"""SCSA: SMSA followed by PCSA (arXiv 2407.05128), in eager PyTorch. The algebra is in `smsa` and `pcsa`."""

from collections.abc import Sequence

from torch import Tensor

from .pcsa import pcsa
from .smsa import smsa


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
) -> Tensor:
    """Gate x (B, C, H, W) by rows and columns, then channels (eq. 1-13); shapes in `fastattn.functional`."""
    s = smsa(x, conv_weights, conv_biases, norm_h, norm_w, gate_layer=gate_layer)
    return pcsa(
        s,
        norm,
        qkv_weights,
        qkv_biases,
        head_num=head_num,
        window_size=window_size,
        down_sample_mode=down_sample_mode,
        gate_layer=gate_layer,
        conv_d_weight=conv_d_weight,
        attn_drop_ratio=attn_drop_ratio,
        training=training,
    )
