"""Modules as other authors write them: the same structure, names and equations, in eager PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def depthwise1d(channels: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)


class SCSA(nn.Module):
    """As released by the authors, without mmengine's base class; `gate` are layers, pooling is one."""

    def __init__(self, dim, head_num=1, window_size=7, group_kernel_sizes=(3, 5, 7, 9), qkv_bias=False, **options):
        super().__init__()
        options = {"down_sample_mode": "avg_pool", "attn_drop_ratio": 0.0, "gate_layer": "sigmoid", **options}
        self.dim, self.head_num, self.window_size = dim, head_num, window_size
        self.head_dim = dim // head_num
        self.scaler = self.head_dim**-0.5
        self.group_chans = dim // 4
        self.local_dwc = depthwise1d(self.group_chans, group_kernel_sizes[0])
        self.global_dwc_s = depthwise1d(self.group_chans, group_kernel_sizes[1])
        self.global_dwc_m = depthwise1d(self.group_chans, group_kernel_sizes[2])
        self.global_dwc_l = depthwise1d(self.group_chans, group_kernel_sizes[3])
        softmax = options["gate_layer"] == "softmax"
        self.sa_gate = nn.Softmax(dim=2) if softmax else nn.Sigmoid()
        self.norm_h, self.norm_w = nn.GroupNorm(4, dim), nn.GroupNorm(4, dim)
        self.conv_d = nn.Identity()
        self.norm = nn.GroupNorm(1, dim)
        self.q = nn.Conv2d(dim, dim, 1, bias=qkv_bias, groups=dim)
        self.k = nn.Conv2d(dim, dim, 1, bias=qkv_bias, groups=dim)
        self.v = nn.Conv2d(dim, dim, 1, bias=qkv_bias, groups=dim)
        self.attn_drop = nn.Dropout(options["attn_drop_ratio"])
        self.ca_gate = nn.Softmax(dim=1) if softmax else nn.Sigmoid()
        pool = nn.MaxPool2d if options["down_sample_mode"] == "max_pool" else nn.AvgPool2d
        self.down_func = nn.AdaptiveAvgPool2d(1) if window_size == -1 else pool(window_size, window_size)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        convs = self.local_dwc, self.global_dwc_s, self.global_dwc_m, self.global_dwc_l

        def gate(mean: Tensor, norm: nn.Module) -> Tensor:
            parts = torch.split(mean, self.group_chans, dim=1)
            return self.sa_gate(norm(torch.cat([conv(part) for conv, part in zip(convs, parts, strict=True)], dim=1)))

        rows = gate(x.mean(dim=3), self.norm_h).view(batch, channels, height, 1)
        columns = gate(x.mean(dim=2), self.norm_w).view(batch, channels, 1, width)
        x = x * rows * columns
        y = self.norm(self.conv_d(self.down_func(x)))
        heads = (batch, self.head_num, self.head_dim, -1)
        q, k, v = self.q(y).reshape(heads), self.k(y).reshape(heads), self.v(y).reshape(heads)
        attention = self.attn_drop((q @ k.transpose(-2, -1) * self.scaler).softmax(dim=-1))
        mean = (attention @ v).reshape(batch, channels, -1).mean(dim=2).view(batch, channels, 1, 1)
        return self.ca_gate(mean) * x


class SpatialPart(nn.Module):
    """SMSA with names of its own: the convolutions in a list, the columns' normalisation first."""

    def __init__(self, dim: int, kernels: tuple[int, ...] = (3, 5, 7, 9)):
        super().__init__()
        self.gn_w, self.gn_h = nn.GroupNorm(4, dim), nn.GroupNorm(4, dim)
        self.branches = nn.ModuleList(depthwise1d(dim // 4, kernel) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        def convolve(mean: Tensor) -> Tensor:
            return torch.cat([conv(part) for conv, part in zip(self.branches, mean.chunk(4, 1), strict=True)], 1)

        rows, columns = self.gn_h(convolve(x.mean(3))), self.gn_w(convolve(x.mean(2)))
        return x * rows.sigmoid().unsqueeze(3) * columns.sigmoid().unsqueeze(2)


class ChannelPart(nn.Module):
    """PCSA with names of its own, one head and the gate on the mean of what attention gives."""

    def __init__(self, dim: int, window: int = 7, scale: float = 1.0):
        super().__init__()
        self.scale = scale * dim**-0.5
        self.pool = nn.AvgPool2d(window)
        self.gn = nn.GroupNorm(1, dim)
        self.to_q = nn.Conv2d(dim, dim, 1, groups=dim)
        self.to_k = nn.Conv2d(dim, dim, 1, groups=dim)
        self.to_v = nn.Conv2d(dim, dim, 1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gn(self.pool(x))
        q, k, v = (layer(y).flatten(2) for layer in (self.to_q, self.to_k, self.to_v))
        attention = torch.softmax(torch.bmm(q, k.mT) * self.scale, dim=-1)
        return x * torch.bmm(attention, v).mean(-1)[..., None, None].sigmoid()


class BothParts(nn.Module):
    """SCSA out of its parts."""

    def __init__(self, dim: int, **options):
        super().__init__()
        self.spatial, self.channel = SpatialPart(dim), ChannelPart(dim, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel(self.spatial(x))


class LocalGlobalAttention(nn.Module):
    """As released by the author: the product sums over separate indices of the attention and of the values."""

    def __init__(self, embed_dim: int, num_heads: int, height: int = 14, width: int = 14, contraction="released"):
        super().__init__()
        self.num_heads = num_heads
        self.equation = "bhqk,bhvd->bhqd" if contraction == "released" else "bhqk,bhkd->bhqd"

        def separable(kernel: int, out: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
            first = nn.Conv2d(embed_dim, embed_dim, kernel, stride, kernel // 2, groups=embed_dim)
            return nn.Sequential(first, nn.Conv2d(embed_dim, out, 1, groups=groups))

        self.multi_scale_convs = nn.ModuleList(separable(3, embed_dim, 2**i) for i in range(3))
        self.scale_attention = nn.Sequential(nn.Conv2d(embed_dim, 4, 1), nn.Softmax(dim=1))
        self.position_encoding = nn.Parameter(torch.randn(1, embed_dim, height, width))
        self.local_convs = nn.ModuleList(separable(kernel, 3 * embed_dim, groups=num_heads) for kernel in (3, 5, 7))
        self.global_conv = separable(11, 3 * embed_dim, groups=num_heads)
        self.learnable_alpha_local = nn.Parameter(torch.tensor(0.5))
        self.learnable_alpha_global = nn.Parameter(torch.tensor(0.5))
        self.out_conv = nn.Conv2d(embed_dim, embed_dim, 1)

    def attend(self, z: Tensor, conv: nn.Module) -> Tensor:
        batch, dim, height, width = z.shape
        shape = (batch, self.num_heads, dim // self.num_heads, height * width)
        q, k, v = (part.reshape(shape) for part in conv(z).chunk(3, dim=1))
        energy = torch.einsum("bhqd,bhkd->bhqk", q, k) / (dim // self.num_heads) ** 0.5
        return torch.einsum(self.equation, energy.softmax(dim=-1), v).reshape(z.shape)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        features = [x] + [F.interpolate(conv(x), size=size, mode="nearest") + x for conv in self.multi_scale_convs]
        weights = self.scale_attention(x)
        z = sum(weights[:, i : i + 1] * feature for i, feature in enumerate(features))
        z = z + F.interpolate(self.position_encoding, size=size, mode="nearest")
        local = torch.stack([self.attend(z, conv) + x for conv in self.local_convs]).mean(dim=0)
        whole = self.attend(z, self.global_conv) + x
        return self.out_conv(self.learnable_alpha_local * local + self.learnable_alpha_global * whole)
