"""Local-Global Attention (arXiv 2411.09604), with the author's constructor and state dict."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import check_map, check_not_empty
from ..core.module import FastModule, affine
from ..core.reference import Affine, resize_nearest
from .functional import check_options, local_global_attention
from .reference import Branch, Separable, attend

torch.fx.wrap("local_global_attention")  # FX records the call and takes no step into it

_ALPHAS = ("learnable_alpha_local", "learnable_alpha_global")  # (1), since FSDP2 shards no scalars as the author's are


class LocalGlobalAttention(FastModule):
    """Attention on local and global features of x (B, embed_dim, H, W) (arXiv 2411.09604, eq. 1-15).

    `contraction="paper"` computes the paper's equation 10, A v, in the layout of the author's published code: A is of a
    head's channels (d x d), though the text around equation 8 speaks of space; `"released"` what that code computes: it
    sums A and v over separate indices, so that every channel of a head gets the sum of the head's values, and the
    queries and keys have no effect and no gradient; `"spatial"` what the text says: attention among the pixels of a
    head (HW x HW, softmax over pixels). All have the same parameters: choose "released" for weights that were trained
    with the published code. `branches` are "both", "local" (the paper's LA) or "global" (GA); what is left out has no
    parameters. The position encoding (height, width) is resized to any input by nearest neighbour.

    ValueError for options that do not fit one another; in forward, for an input that is not real floating point of
    shape (B, embed_dim, H, W) with at least one pixel.
    """

    operation = "lga"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        local_kernel_sizes: Sequence[int] = (3, 5, 7),
        global_kernel_size: int = 11,
        height: int = 14,
        width: int = 14,
        num_scales: int = 3,
        contraction: str = "paper",
        branches: str = "both",
    ):
        super().__init__()
        kernels = local_kernel_sizes, global_kernel_size
        check_options(embed_dim, num_heads, *kernels, height, width, num_scales, contraction, branches)
        self.embed_dim, self.num_heads, self.num_scales = embed_dim, num_heads, num_scales
        self.local_kernel_sizes, self.global_kernel_size = tuple(local_kernel_sizes), global_kernel_size
        self.height, self.width = height, width
        self.contraction, self.branches = contraction, branches

        def separable(kernel: int, out: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
            depthwise = nn.Conv2d(embed_dim, embed_dim, kernel, stride, kernel // 2, groups=embed_dim)
            return nn.Sequential(depthwise, nn.Conv2d(embed_dim, out, 1, groups=groups))

        self.multi_scale_convs: Iterable[Any] = nn.ModuleList(separable(3, embed_dim, 2**i) for i in range(num_scales))
        self.scale_attention = nn.Sequential(nn.Conv2d(embed_dim, num_scales + 1, 1), nn.Softmax(dim=1))
        self.position_encoding = nn.Parameter(torch.randn(1, embed_dim, height, width))
        if branches != "global":
            self.local_convs: Iterable[Any] = nn.ModuleList(
                separable(kernel, 3 * embed_dim, groups=num_heads) for kernel in local_kernel_sizes
            )
            self.learnable_alpha_local = nn.Parameter(torch.tensor([0.5]))
        if branches != "local":
            self.global_conv = separable(global_kernel_size, 3 * embed_dim, groups=num_heads)
            self.learnable_alpha_global = nn.Parameter(torch.tensor([0.5]))
        self.out_conv = nn.Conv2d(embed_dim, embed_dim, 1)
        self._note_children()

    def reset_parameters(self) -> None:
        """Draw the position encoding anew and set the branches' alphas to 0.5; the children's parameters are theirs."""
        nn.init.normal_(self.position_encoding)
        for name in _ALPHAS:
            alpha = self._parameters.get(name)
            if alpha is not None:
                nn.init.constant_(alpha, 0.5)

    def operands(self) -> tuple[list[Separable], Affine, Tensor, list[Branch], Affine]:
        """Return the parameters as the operation takes them."""
        branches = []
        if self.branches != "global":
            branches.append(Branch([*map(_separable, self.local_convs)], self.learnable_alpha_local))
        if self.branches != "local":
            branches.append(Branch([_separable(self.global_conv)], self.learnable_alpha_global))
        scales = [*map(_separable, self.multi_scale_convs)]
        return scales, affine(self.scale_attention[0]), self.position_encoding, branches, affine(self.out_conv)

    def _through_children(self, x: Tensor) -> Tensor:
        """Call the children, as the authors' module does."""
        check_map(x, self.embed_dim)
        check_not_empty(x)
        size = x.shape[2:]
        features = [x, *(resize_nearest(scale(x), *size) + x for scale in self.multi_scale_convs)]
        shares = self.scale_attention(x).split(1, dim=1)
        z = sum(share * feature for share, feature in zip(shares, features, strict=True))
        z = z + resize_nearest(self.position_encoding, *size)
        branches = []
        if self.branches != "global":
            branches.append(([*self.local_convs], self.learnable_alpha_local))
        if self.branches != "local":
            branches.append(([self.global_conv], self.learnable_alpha_global))
        mixed = [
            alpha * (sum(attend(conv(z), self.num_heads, self.contraction) + x for conv in convs) / len(convs))
            for convs, alpha in branches
        ]
        return self.out_conv(sum(mixed))

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_through_children():
            return self._through_children(x)
        return local_global_attention(
            x, *self.operands(), num_heads=self.num_heads, contraction=self.contraction, backend=self.backend
        )

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, {self.num_heads}, local_kernel_sizes={self.local_kernel_sizes}, "
            f"global_kernel_size={self.global_kernel_size}, height={self.height}, width={self.width}, "
            f"num_scales={self.num_scales}, contraction={self.contraction!r}, branches={self.branches!r}"
        )

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        """Take the author's alphas, which are scalars, and add to torch's messages which arguments the checkpoint was
        made for, where it does not fit."""
        for key in (prefix + name for name in _ALPHAS):
            if key in state_dict and state_dict[key].dim() == 0:
                state_dict[key] = state_dict[key].reshape(1)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        own = {f"{prefix}{name}": tensor.shape for name, tensor in self.state_dict().items()}
        found = {name: tensor.shape for name, tensor in state_dict.items() if name.startswith(prefix)}
        misfits = any(own[name] != shape for name, shape in found.items() if name in own)
        if misfits or (strict and own.keys() != found.keys()):
            made_for = arguments_told_by({name.removeprefix(prefix): shape for name, shape in found.items()})
            other = [f"{name}={value!r}" for name, value in made_for.items() if getattr(self, name) != value]
            if other:
                errors.append(f"the checkpoint was made for {', '.join(other)}")


def arguments_told_by(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the constructor's arguments that a state dict of these shapes tells."""

    def kernels(pattern: str) -> tuple[int, ...]:
        return tuple(shape[2] for name, shape in shapes.items() if re.fullmatch(pattern, name))

    local, in_all = kernels(r"local_convs\.\d+\.0\.weight"), kernels(r"global_conv\.0\.weight")
    scales = kernels(r"multi_scale_convs\.\d+\.0\.weight")
    arguments: dict[str, Any] = {"num_scales": len(scales)} if scales else {}  # none in a checkpoint of another module
    if local or in_all:
        arguments["branches"] = "both" if local and in_all else "local" if local else "global"
    if local:
        arguments["local_kernel_sizes"] = local
    if in_all:
        arguments["global_kernel_size"] = in_all[0]
    if "position_encoding" in shapes:
        _, arguments["embed_dim"], arguments["height"], arguments["width"] = shapes["position_encoding"]
        grouped = re.compile(r"(local_convs\.\d+|global_conv)\.1\.weight")
        pointwise = [shape[1] for name, shape in shapes.items() if grouped.fullmatch(name)]
        if pointwise:
            arguments["num_heads"] = arguments["embed_dim"] // pointwise[0]
    return arguments


def _separable(module: nn.Sequential) -> Separable:
    return Separable(affine(module[0]), affine(module[1]))
