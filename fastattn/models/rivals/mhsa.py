"""Multi-head self-attention over pixels (arXiv 1706.03762)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import check_heads


class MHSA(nn.Module):
    """Attend from each pixel of x (B, C, H, W) to all, as torch.nn.MultiheadAttention does, without positions.

    ValueError for channels that `num_heads` does not divide.
    """

    def __init__(self, channels: int, num_heads: int = 4):
        super().__init__()
        check_heads(channels, num_heads, "channels")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, N, C]
        return self.proj(out).transpose(1, 2).unflatten(2, x.shape[2:])
