"""Conceptual attention: the calls. Nothing of N x K is stored; the products with C x C matrices are the library's."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import tiles, tuning
from ..common.launch import Launch, aligned, processors, product_precision
from ..common.run import run
from .backward import score_gradient_kernel, token_gradient_kernel, value_gradient_kernel
from .forward import gather_kernel, merge_kernel, spread_kernel

FORWARD = ("x", "score", "sums", "totals", "means", "logs")
SPREAD = ("x", "score", "values", "bias", "out", "logs")
VALUES = ("x", "grad", "score", "logs", "sums", "grad_sums")
BACKWARD = ("x", "grad", "score", "values", "d_means", "logs_n", "logs_k", "e", "deltas", "grad_x", "sums")
PROGRAMS = 2  # per multiprocessor, of a pass in parts
SHORTEST = 4  # blocks of tokens in a part, at least
CHUNKS = {False: (128, 64, 32, 16), True: (64, 32, 16)}  # of float32
# float32: up to so many channels, the tokens or concepts that a program owns, those that it takes at a time, warps and
# stages: what fits into registers
BLOCKS: dict[bool, dict[Any, dict[int, tuple[int, int, int, int]]]] = {
    False: {
        gather_kernel: {128: (64, 64, 4, 2), 256: (64, 32, 8, 2), 768: (32, 32, 8, 2)},
        spread_kernel: {128: (64, 64, 4, 2), 256: (64, 32, 8, 2), 768: (32, 32, 8, 2)},
        value_gradient_kernel: {128: (64, 64, 8, 2), 256: (32, 64, 8, 2), 768: (16, 16, 8, 2)},
        token_gradient_kernel: {128: (64, 32, 8, 2), 256: (32, 64, 8, 3), 768: (16, 32, 8, 2)},
        score_gradient_kernel: {128: (32, 64, 4, 2), 256: (32, 64, 8, 3), 768: (16, 32, 8, 2)},
    },
    True: {
        gather_kernel: {256: (32, 16, 8, 2), 768: (16, 16, 8, 1)},
        spread_kernel: {256: (32, 16, 8, 2), 768: (16, 16, 8, 1)},
        value_gradient_kernel: {256: (32, 16, 8, 1), 768: (16, 16, 8, 1)},
        token_gradient_kernel: {256: (32, 16, 8, 1), 768: (16, 16, 8, 1)},
        score_gradient_kernel: {256: (32, 16, 8, 1), 768: (16, 16, 8, 1)},
    },
}


def chunks_of(channels: int, single: bool) -> tuple[int, int]:
    """Return the size of a chunk and how many a row has, of little excess and few."""
    size = min(CHUNKS[single], key=lambda size: (-(-channels // size) * size + 4 * -(-channels // size), -size))
    return size, -(-channels // size)


class Plan:
    """The launches of one signature, and how many parts the tokens of a sample are in, by kernel."""

    def __init__(
        self, batch: int, tokens: int, channels: int, concepts: int, save: bool, precision: str, dtypes: tuple,
        device: torch.device,
    ):  # fmt: skip
        self.batch, self.tokens, self.channels, self.concepts = batch, tokens, channels, concepts
        self.processors, self.context = processors(device), (device, *dtypes)
        single = dtypes[1] is torch.float32
        chunk, count = chunks_of(channels, single)
        self.constants = {
            "COUNT": count, "CHUNK": chunk, "EVEN": chunk * count == channels, "ALIGN": tiles.alignment(channels),
            "PRECISION": precision, "SAVE": save,
        }  # fmt: skip
        self.choices = {
            function: next(blocks for most, blocks in choices.items() if channels <= most)
            for function, choices in BLOCKS[single].items()
        }
        gather, self.parts = self._in_parts(gather_kernel, FORWARD)
        self.forward = (gather, self._merge())
        self.spread = (self._over_tokens(spread_kernel, SPREAD),)
        values, self.value_parts = self._in_parts(value_gradient_kernel, VALUES)
        self.values = (values,)
        score, self.score_parts = self._in_parts(score_gradient_kernel, BACKWARD)
        self.backward = (self._over_tokens(token_gradient_kernel, BACKWARD), score)

    def _in_parts(self, function: Any, names: Sequence[str]) -> tuple[Launch, int]:
        """Return a launch over parts of the tokens and blocks of concepts, and the parts of a sample."""
        own, other, warps, stages = self.choices[function]
        own, other = min(own, _block(self.concepts)), min(other, _block(self.tokens))
        blocks = -(-self.concepts // own)
        wanted = max(1, PROGRAMS * self.processors // (self.batch * blocks))
        length = max(-(-self.tokens // wanted), min(SHORTEST * other, self.tokens))
        length = -(-length // other) * other
        parts = -(-self.tokens // length)
        sizes = {"N": self.tokens, "C": self.channels, "K": self.concepts, "PARTS": parts, "LENGTH": length}
        grid = self.batch * parts * blocks
        return self._launch(function, names, grid, sizes, {"BK": own, "BN": other}, warps, stages), parts

    def _over_tokens(self, function: Any, names: Sequence[str]) -> Launch:
        """Return a launch over blocks of tokens."""
        own, other, warps, stages = self.choices[function]
        own, other = min(own, _block(self.tokens)), min(other, _block(self.concepts))
        while own > 16 and self.batch * -(-self.tokens // own) < self.processors:
            own //= 2
        sizes = {"N": self.tokens, "C": self.channels, "K": self.concepts}
        blocks = {"BM": own, "BK": other, "ONE": other >= self.concepts}
        return self._launch(function, names, self.batch * -(-self.tokens // own), sizes, blocks, warps, stages)

    def _merge(self) -> Launch:
        block, chunk = min(16, tiles.power(self.concepts)), min(128, tiles.power(self.channels))
        grid = self.batch * -(-self.concepts // block), -(-self.channels // chunk), 1
        sizes = {"C": self.channels, "K": self.concepts, "PARTS": self.parts}
        constants = {"CHUNK": chunk, "ALIGN": self.constants["ALIGN"], "BK": block}
        tensors = ("sums", "totals", "means", "logs")
        return Launch(merge_kernel, lambda _: grid, tensors, FORWARD, sizes, constants, 4, context=self.context)

    def _launch(
        self, function: Any, names: Sequence[str], grid: int, sizes: dict[str, int], blocks: dict[str, int],
        num_warps: int, num_stages: int,
    ) -> Launch:  # fmt: skip
        known: dict[str, Any] = {**self.constants, **blocks}
        arguments = inspect.signature(function.fn).parameters
        launch = Launch(
            function, lambda _: (grid, 1, 1), [name for name in arguments if name in names], names, sizes,
            {name: known[name] for name in arguments if name in known}, num_warps, context=self.context,
            num_stages=num_stages,
        )  # fmt: skip
        return tuning.apply(launch)


def _block(size: int) -> int:
    """Return the block that covers a size, at least what products take."""
    return max(16, tiles.power(size))


@functools.lru_cache(maxsize=512)
def plan(batch, tokens, channels, concepts, save, precision, dtypes, device, alignment) -> Plan:
    """Return the plan of one signature; `alignment` keeps calls apart for which Triton compiles apart."""
    return Plan(batch, tokens, channels, concepts, save, precision, dtypes, device)


def _prepare(x: Tensor, score: Tensor, save: bool, *others: Tensor) -> Plan:
    dtypes = tuple(t.dtype for t in (x, score, *others))
    return plan(
        *x.shape, score.shape[0], save, product_precision(score.dtype), dtypes, x.device, aligned(x, score, *others)
    )


def forward(
    x: Tensor, score: Tensor, value: Tensor, value_bias: Tensor, out: Tensor, out_bias: Tensor, save: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the result in a dtype, and what is to be saved: the logarithms of the softmax over K (B, N) and over N
    (B, K), the means (B, K, C), all float32, the concept tokens and what they give back, without the bias, (B, K, C).

    x (B, N, C) and the parameters are contiguous; the latter have one dtype.
    """
    batch, tokens, channels = x.shape
    concepts = score.shape[0]
    result = torch.empty_like(x, dtype=dtype)
    ready = _prepare(x, score, save, out_bias, result)
    single = functools.partial(x.new_empty, dtype=torch.float32)
    means, logs_k = single((batch, concepts, channels)), single((batch, concepts))
    sums, totals = single((batch * ready.parts, concepts, channels)), single((batch * ready.parts, 2, concepts))
    run(ready.forward, (x, score, sums, totals, means, logs_k))
    gathered = F.linear(means.to(score.dtype), value, value_bias)
    values = F.linear(gathered, out)
    logs_n = single((batch, tokens) if save else 0)
    run(ready.spread, (x, score, values, out_bias, result, logs_n))
    return result, logs_n, logs_k, means, gathered, values


def backward(
    grad: Tensor, x: Tensor, score: Tensor, value: Tensor, out: Tensor, logs_n: Tensor, logs_k: Tensor, means: Tensor,
    gathered: Tensor, values: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of x and of the parameters, in the order of forward."""
    batch, tokens, channels = x.shape
    dtype, concepts = score.dtype, score.shape[0]
    grad_x = torch.empty_like(x)
    ready = _prepare(x, score, True, grad, grad_x)
    single = functools.partial(x.new_empty, dtype=torch.float32)
    sums = single((batch, ready.value_parts, concepts, channels))
    grad_sums = single((batch * ready.value_parts, channels))
    run(ready.values, (x, grad, score, logs_n, sums, grad_sums))
    d_values = sums.sum(1).to(dtype)
    d_gathered = d_values @ out
    d_means = d_gathered @ value
    e = (means * d_means).sum(2)
    sums = single((batch * ready.score_parts, concepts, channels))
    deltas = single((batch, tokens))
    run(ready.backward, (x, grad, score, values, d_means, logs_n, logs_k, e, deltas, grad_x, sums))
    d_value = d_gathered.flatten(0, 1).T @ means.flatten(0, 1).to(dtype)
    d_out = d_values.flatten(0, 1).T @ gathered.flatten(0, 1)
    d_biases = d_gathered.sum((0, 1)), grad_sums.sum(0).to(dtype)
    return grad_x, sums.sum(0).to(dtype), d_value, d_biases[0], d_out, d_biases[1]
