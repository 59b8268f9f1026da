"""LGA's channel attention of all kernel sizes by Gram matrices: the calls. q, k and v are not formed."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import tiles, tuning
from ..common.batch_sum import batch_sum_kernel
from ..common.launch import Grid, Launch, aligned, processors, product_precision
from ..common.run import run
from .gram_attention_backward import gram_attention_backward_kernel, gram_mix_backward_kernel
from .gram_attention_forward import gram_attention_kernel, gram_mix_kernel

FORWARD = ("features", "weights", "biases", "shares", "x", "saved", "mixers", "mixed")
BACKWARD = (
    *("features", "weights", "biases", "shares", "x", "saved", "grad_mixed"),
    *("mixers", "scratch", "terms", "grads", "grad_params", "grad_shares"),
)
HEAD_MOST = 64  # largest size of a head
# float32: up to a head size, the pixels at a time, warps and stages of a pass over all, those of one over blocks
BLOCKS = {
    False: {16: (32, 2, 3, 128, 4, 2), 32: (64, 4, 3, 64, 4, 2), 64: (32, 8, 2, 64, 4, 2)},
    True: {16: (32, 2, 3, 64, 4, 2), 32: (32, 4, 3, 64, 4, 2), 64: (32, 8, 2, 32, 4, 2)},
}


def saved_shape(batch: int, kernels: int, num_heads: int, head: int, contraction: str) -> tuple[int, ...]:
    """Return the shape of what forward leaves for backward; attention is its first rows, [..., :head, :]."""
    return (batch, kernels, num_heads, 2 * head + 2, head) if contraction == "paper" else (0,)


class Plan:
    """The launches of one signature: `forward` and `backward`, and the floats of their workspaces."""

    def __init__(
        self, batch: int, num_heads: int, head: int, pixels: int, kernels: int, contraction: str, channels_last: bool,
        dtype: torch.dtype, param_dtype: torch.dtype, precision: str, device: torch.device,
    ):  # fmt: skip
        self.context = dtype, param_dtype, device, tiles.power(pixels)
        self.batch, self.pixels, self.processors = batch, pixels, processors(device)
        self.sizes = {"HEADS": num_heads, "P": pixels}
        self.constants = {
            "KERNELS": kernels, "HEAD": head, "SCALE": head**-0.5, "PAPER": contraction == "paper",
            "NHWC": channels_last, "ALIGN": tiles.alignment(pixels), "PRECISION": precision,
            "BD": max(16, tiles.power(head)),
        }  # fmt: skip
        choices = BLOCKS[dtype is torch.float32]
        self.blocks = next(choices[size] for size in choices if head <= size)

        matrix = (head + 1) * head
        self.saved_shape = saved_shape(batch, kernels, num_heads, head, contraction)
        self.mixers, self.grads = batch * kernels * num_heads * matrix, kernels * 3 * num_heads * matrix
        self.terms = batch * num_heads * 2  # rows
        slices = kernels * num_heads
        self.forward = (
            self._pass(gram_attention_kernel, FORWARD, slices),
            self._mix(gram_mix_kernel, FORWARD, num_heads - 2 * num_heads // 3),
        )
        self.backward = (
            self._pass(gram_attention_backward_kernel, BACKWARD, slices),
            self._mix(gram_mix_backward_kernel, BACKWARD, slices),
            self._sum(("scratch", "grad_params"), batch, self.grads),
            self._sum(("terms", "grad_shares"), self.terms, kernels),
        )

    def _pass(self, kernel: Any, names: Sequence[str], slices: int) -> Launch:
        """Launch over slices; a program takes all pixels."""
        most, *options = self.blocks[:3]
        return self._launch(kernel, names, [self._block(most)], lambda _: (self.batch * slices, 1, 1), *options)

    def _mix(self, kernel: Any, names: Sequence[str], slices: int) -> Launch:
        """Launch over slices and blocks of pixels, smaller ones where programs are few."""

        def grid(constants: Mapping[str, Any]) -> Grid:
            return self.batch * slices * -(-self.pixels // constants["BP"]), 1, 1

        most, *options = self.blocks[3:]
        block = self._block(most)
        while block > 16 and grid({"BP": block})[0] < 2 * self.processors:
            block //= 2
        return self._launch(kernel, names, sorted({block, max(16, block // 2)}, reverse=True), grid, *options)

    def _block(self, most: int) -> int:
        """Return the pixels of a block that few of its own exceed."""
        return min(most, max(16, tiles.power(self.pixels)))

    def _launch(
        self, kernel: Any, names: Sequence[str], blocks: Sequence[int], grid: Callable[[Mapping[str, Any]], Grid],
        num_warps: int, num_stages: int,
    ) -> Launch:  # fmt: skip
        """Bind a kernel's parameters by their names; the first block is the default, others are alternatives."""
        arguments = inspect.signature(kernel.fn).parameters
        first, *others = ({"BP": block} for block in blocks)
        known = {**self.constants, **first}
        tensors = [name for name in arguments if name in names]
        constants = {name: known[name] for name in arguments if name in known}
        launch = Launch(
            kernel, grid, tensors, names, self.sizes, constants, num_warps, others, self.context, num_stages
        )
        return tuning.apply(launch)

    def _sum(self, names: Sequence[str], rows: int, size: int) -> Launch:
        """Launch the sum of the rows of a matrix."""
        columns, rows_at_a_time = tiles.fit(2048, min(size, 64), min(rows, 256))
        return Launch(
            batch_sum_kernel, lambda _: (-(-size // columns), 1, 1), names, BACKWARD,
            {"B": rows, "SCRATCH": size, "GRADS": size}, {"BB": rows_at_a_time, "BLOCK": columns}, 4,
            context=self.context,
        )  # fmt: skip


@functools.lru_cache(maxsize=512)
def plan(
    batch, num_heads, head, pixels, kernels, contraction, channels_last, dtype, param_dtype, precision, device,
    alignment,
) -> Plan:  # fmt: skip
    """Return the plan of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    return Plan(
        batch, num_heads, head, pixels, kernels, contraction, channels_last, dtype, param_dtype, precision, device
    )


def _prepare(
    features: Sequence[Tensor], weights: Sequence[Tensor], num_heads: int, contraction: str, *others: Tensor
) -> Plan:
    batch, channels, height, width = features[0].shape
    dtype = features[0].dtype
    return plan(
        batch, num_heads, channels // num_heads, height * width, len(features), contraction,
        not features[0].is_contiguous(), dtype, weights[0].dtype, product_precision(dtype), features[0].device,
        aligned(*features, *others),
    )  # fmt: skip


def forward(
    features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], shares: Tensor, x: Tensor,
    num_heads: int, contraction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the sum of shares (float32) of A v + x over the features, in x's format, and what backward needs.

    Features are depthwise outputs, dense and in the format of x (B, D, H, W); weights and biases are those of
    the 1x1 convolutions (3 D, D / num_heads, 1, 1), all contiguous and of one dtype.
    """
    ready = _prepare(features, weights, num_heads, contraction, x)
    saved = shares.new_empty(ready.saved_shape)
    mixers = shares.new_empty(ready.mixers)
    mixed = torch.empty_like(x)
    parameters = (tuple(features), tuple(weights), tuple(biases), shares)
    run(ready.forward, (*parameters, x, saved, mixers, mixed))
    return mixed, saved


def backward(
    grad_mixed: Tensor, features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor],
    shares: Tensor, x: Tensor, saved: Tensor, num_heads: int, contraction: str,
) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the features, of all weights, then all biases, and of the shares (float32).

    grad_mixed has the format of x. The gradient of x, sum(shares) * grad_mixed, is not returned.
    """
    ready = _prepare(features, weights, num_heads, contraction, x, saved, grad_mixed)
    mixers = shares.new_empty(3 * ready.mixers)
    scratch, terms = shares.new_empty((ready.batch, ready.grads)), shares.new_empty((ready.terms, len(features)))
    grads = [torch.empty_like(feature) for feature in features]
    grad_params, grad_shares = weights[0].new_empty(ready.grads), torch.empty_like(shares)
    parameters = (tuple(features), tuple(weights), tuple(biases), shares)
    workspaces = (mixers, scratch, terms)
    run(
        ready.backward,
        (*parameters, x, saved, grad_mixed, *workspaces, tuple(grads), grad_params, grad_shares),
    )
    return grads, grad_params, grad_shares
