"""Attention within parts in the flash manner: q, k and v are read where they lie, an online softmax keeps none of the
scores, and backward forms them again. A program owns the rows that it writes: no sum is atomic.

Token n = j * PARTS + p of (B, N, HEADS * D) is the j-th of part p: a part's tokens are rows, PARTS * TOKEN elements
apart. Scores are in base 2: their scale holds log2(e), and `logsumexp` and `delta` = sum(grad_out * out) are float32
(B, PARTS, HEADS, LENGTH), with LENGTH = N / PARTS.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import tuning
from ..common.launch import Grid, Launch, processors, product_precision
from ..common.run import run
from ..common.tiles import power

SIZES = ("LENGTH", "PARTS", "HEADS", "QB", "QN", "KB", "KN", "VB", "VN", "B")
FORWARD = ("q", "k", "v", "out", "logsumexp")
BACKWARD = ("q", "k", "v", "out", "grad_out", "logsumexp", "delta", "grad_q", "grad_k", "grad_v")
LOG2_E = tl.constexpr(1.4426950408889634)
# (float32, backward): up to a head size, the rows of a program, rows at a time, warps and stages: what fits into 99 KiB
# and, except float32 beyond 32, into registers
BLOCKS = {
    (False, False): {32: (128, 64, 4, 3), 64: (128, 64, 8, 3), 128: (128, 32, 8, 3)},
    (False, True): {32: (64, 64, 4, 2), 64: (64, 32, 4, 2), 128: (32, 32, 8, 2)},
    (True, False): {32: (64, 32, 4, 2), 64: (64, 16, 4, 1), 128: (16, 16, 8, 1)},
    (True, True): {32: (64, 16, 4, 1), 64: (16, 32, 4, 1), 128: (16, 16, 8, 1)},
}
kernel = functools.partial(triton.jit, do_not_specialize=SIZES)


@triton.jit
def place(LENGTH, PARTS, HEADS, BLOCK: tl.constexpr):
    """Sample, part, head and first row of a program; the heads of the same tokens are neighbours."""
    blocks = tl.cdiv(LENGTH, BLOCK)
    head = tl.program_id(0) % HEADS
    rest = tl.program_id(0) // HEADS
    part = rest // blocks % PARTS
    return rest // blocks // PARTS, part, head, rest % blocks * BLOCK


@triton.jit
def first(tensor, b, part, head, BATCH, TOKEN, D: tl.constexpr, ALIGN: tl.constexpr):
    """Pointer to the first token of a part, in one sample and head."""
    return tensor + b.to(tl.int64) * (BATCH // ALIGN * ALIGN) + part.to(tl.int64) * (TOKEN // ALIGN * ALIGN) + head * D


@triton.jit
def rows(pointer, j, LENGTH, PARTS, TOKEN, D: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr):
    """The tokens j of a part, [BLOCK, D], zero beyond its length."""
    step = PARTS.to(tl.int64) * (TOKEN // ALIGN * ALIGN)
    pointers = pointer + j[:, None] * step + tl.arange(0, D)[None, :]
    if MASKED:
        return tl.load(pointers, mask=(j < LENGTH)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def store_rows(pointer, j, value, LENGTH, PARTS, TOKEN, D: tl.constexpr, ALIGN: tl.constexpr):
    """Write the tokens j of a part."""
    step = PARTS.to(tl.int64) * (TOKEN // ALIGN * ALIGN)
    pointers = pointer + j[:, None] * step + tl.arange(0, D)[None, :]
    tl.store(pointers, value.to(pointer.dtype.element_ty), mask=(j < LENGTH)[:, None])


@triton.jit
def vector(tensor, b, part, head, LENGTH, PARTS, HEADS):
    """Pointer to the floats of one sample, part and head."""
    return tensor + ((b * PARTS + part).to(tl.int64) * HEADS + head) * LENGTH


@triton.jit
def attend(
    acc, total, most, q, k, v, n, LENGTH, PARTS, KN, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the running sums, totals and maxima of the rows."""
    keys = rows(k, n, LENGTH, PARTS, KN, D, ALIGN, MASKED)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)  # [BM, BN], scaled below: one fused operation each
    if MASKED:
        scores = tl.where((n < LENGTH)[None, :], scores, float("-inf"))
    above = tl.maximum(most, tl.max(scores, axis=1) * SCALE)
    weights = tl.exp2(scores * SCALE - above[:, None])
    shrink = tl.exp2(most - above)
    values = rows(v, n, LENGTH, PARTS, VN, D, ALIGN, MASKED)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total * shrink + tl.sum(weights, axis=1), above


@kernel
def attention_forward_kernel(
    q, k, v, out, logsumexp, B, LENGTH, PARTS, HEADS, QB, QN, KB, KN, VB, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (samples x parts x blocks of BM rows x heads)."""
    b, part, head, start = place(LENGTH, PARTS, HEADS, BM)
    m = start + tl.arange(0, BM)
    k = first(k, b, part, head, KB, KN, D, ALIGN)
    v = first(v, b, part, head, VB, VN, D, ALIGN)
    queries = rows(first(q, b, part, head, QB, QN, D, ALIGN), m, LENGTH, PARTS, QN, D, ALIGN, True)
    acc = tl.zeros([BM, D], tl.float32)
    total = tl.zeros([BM], tl.float32)
    most = tl.full([BM], float("-inf"), tl.float32)
    whole = LENGTH // BN * BN
    for n0 in range(0, whole, BN):
        n = n0 + tl.arange(0, BN)
        acc, total, most = attend(
            acc, total, most, queries, k, v, n, LENGTH, PARTS, KN, VN, SCALE, D, ALIGN, PRECISION, False
        )
    if whole < LENGTH:
        n = whole + tl.arange(0, BN)
        acc, total, most = attend(
            acc, total, most, queries, k, v, n, LENGTH, PARTS, KN, VN, SCALE, D, ALIGN, PRECISION, True
        )
    token = HEADS * D
    out = first(out, b, part, head, LENGTH * PARTS * token.to(tl.int64), token, D, ALIGN)
    store_rows(out, m, acc / total[:, None], LENGTH, PARTS, token, D, ALIGN)
    tl.store(vector(logsumexp, b, part, head, LENGTH, PARTS, HEADS) + m, most + tl.log2(total), mask=m < LENGTH)


@triton.jit
def query_gradients(
    acc, mean, slope, q, grad, log, delta, k, v, n, LENGTH, PARTS, KN, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MEND: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add what one block of keys gives to the gradients of the queries, and to mend delta by: the rows' mean keys and
    the sums of their slopes."""
    keys = rows(k, n, LENGTH, PARTS, KN, D, ALIGN, MASKED)
    values = rows(v, n, LENGTH, PARTS, VN, D, ALIGN, MASKED)
    weights = tl.exp2(tl.dot(q, tl.trans(keys), input_precision=PRECISION) * SCALE - log[:, None])  # [BM, BN]
    if MASKED:  # a masked key's zero score may lie far above the row's
        weights = tl.where((n < LENGTH)[None, :], weights, 0.0)
    slopes = weights * (tl.dot(grad, tl.trans(values), input_precision=PRECISION) - delta[:, None])
    if MEND:
        mean = tl.dot(weights.to(keys.dtype), keys, mean, input_precision=PRECISION)
        slope += tl.sum(slopes, axis=1)
    return tl.dot(slopes.to(keys.dtype), keys, acc, input_precision=PRECISION), mean, slope


@kernel
def query_gradient_kernel(
    q, k, v, out, grad_out, logsumexp, delta, grad_q, B, LENGTH, PARTS, HEADS, QB, QN, KB, KN, VB, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    MEND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the queries, and delta for those of keys and values; grid as in forward.

    A row's slopes sum to zero. With `out` rounded to 16 bits, delta is off, the same for all keys; by how much is what
    they sum to instead, and MEND takes it out again.
    """
    b, part, head, start = place(LENGTH, PARTS, HEADS, BM)
    m = start + tl.arange(0, BM)
    token = HEADS * D
    batch = LENGTH * PARTS * token.to(tl.int64)
    k = first(k, b, part, head, KB, KN, D, ALIGN)
    v = first(v, b, part, head, VB, VN, D, ALIGN)
    queries = rows(first(q, b, part, head, QB, QN, D, ALIGN), m, LENGTH, PARTS, QN, D, ALIGN, True)
    grad = rows(first(grad_out, b, part, head, batch, token, D, ALIGN), m, LENGTH, PARTS, token, D, ALIGN, True)
    result = rows(first(out, b, part, head, batch, token, D, ALIGN), m, LENGTH, PARTS, token, D, ALIGN, True)
    products = tl.sum(grad.to(tl.float32) * result.to(tl.float32), axis=1)  # [BM]
    log = tl.load(vector(logsumexp, b, part, head, LENGTH, PARTS, HEADS) + m, mask=m < LENGTH, other=0.0)
    acc = tl.zeros([BM, D], tl.float32)
    mean = tl.zeros([BM, D], tl.float32)
    slope = tl.zeros([BM], tl.float32)
    whole = LENGTH // BN * BN
    for n0 in range(0, whole, BN):
        n = n0 + tl.arange(0, BN)
        acc, mean, slope = query_gradients(
            acc, mean, slope, queries, grad, log, products, k, v, n, LENGTH, PARTS, KN, VN,
            SCALE, D, ALIGN, PRECISION, MEND, False,
        )  # fmt: skip
    if whole < LENGTH:
        n = whole + tl.arange(0, BN)
        acc, mean, slope = query_gradients(
            acc, mean, slope, queries, grad, log, products, k, v, n, LENGTH, PARTS, KN, VN,
            SCALE, D, ALIGN, PRECISION, MEND, True,
        )  # fmt: skip
    if MEND:
        acc -= slope[:, None] * mean
        products += slope
    tl.store(vector(delta, b, part, head, LENGTH, PARTS, HEADS) + m, products, mask=m < LENGTH)
    grad_q = first(grad_q, b, part, head, batch, token, D, ALIGN)
    store_rows(grad_q, m, acc * (SCALE / LOG2_E), LENGTH, PARTS, token, D, ALIGN)


@triton.jit
def key_value_gradients(
    acc_k, acc_v, keys, values, q, grad_out, log, delta, m, LENGTH, PARTS, QN, token,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what one block of queries gives to the gradients of keys and values; beyond the length all is zero."""
    queries = rows(q, m, LENGTH, PARTS, QN, D, ALIGN, MASKED)
    grad = rows(grad_out, m, LENGTH, PARTS, token, D, ALIGN, MASKED)
    if MASKED:
        log = tl.load(log + m, mask=m < LENGTH, other=0.0)
        delta = tl.load(delta + m, mask=m < LENGTH, other=0.0)
    else:
        log = tl.load(log + m)
        delta = tl.load(delta + m)
    weights = tl.exp2(tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * SCALE - log[None, :])  # [BN, BM]
    acc_v = tl.dot(weights.to(grad.dtype), grad, acc_v, input_precision=PRECISION)
    slopes = weights * (tl.dot(values, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
    return tl.dot(slopes.to(queries.dtype), queries, acc_k, input_precision=PRECISION), acc_v


@kernel
def key_value_gradient_kernel(
    q, k, v, grad_out, logsumexp, delta, grad_k, grad_v, B, LENGTH, PARTS, HEADS, QB, QN, KB, KN, VB, VN,
    SCALE: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (samples x parts x blocks of BN rows x heads)."""
    b, part, head, start = place(LENGTH, PARTS, HEADS, BN)
    n = start + tl.arange(0, BN)
    token = HEADS * D
    batch = LENGTH * PARTS * token.to(tl.int64)
    keys = rows(first(k, b, part, head, KB, KN, D, ALIGN), n, LENGTH, PARTS, KN, D, ALIGN, True)
    values = rows(first(v, b, part, head, VB, VN, D, ALIGN), n, LENGTH, PARTS, VN, D, ALIGN, True)
    q = first(q, b, part, head, QB, QN, D, ALIGN)
    grad_out = first(grad_out, b, part, head, batch, token, D, ALIGN)
    log = vector(logsumexp, b, part, head, LENGTH, PARTS, HEADS)
    delta = vector(delta, b, part, head, LENGTH, PARTS, HEADS)
    acc_k = tl.zeros([BN, D], tl.float32)
    acc_v = tl.zeros([BN, D], tl.float32)
    whole = LENGTH // BM * BM
    for m0 in range(0, whole, BM):
        m = m0 + tl.arange(0, BM)
        acc_k, acc_v = key_value_gradients(
            acc_k, acc_v, keys, values, q, grad_out, log, delta, m, LENGTH, PARTS, QN, token,
            SCALE, D, ALIGN, PRECISION, False,
        )  # fmt: skip
    if whole < LENGTH:
        m = whole + tl.arange(0, BM)
        acc_k, acc_v = key_value_gradients(
            acc_k, acc_v, keys, values, q, grad_out, log, delta, m, LENGTH, PARTS, QN, token,
            SCALE, D, ALIGN, PRECISION, True,
        )  # fmt: skip
    grad_k = first(grad_k, b, part, head, batch, token, D, ALIGN)
    store_rows(grad_k, n, acc_k * (SCALE / LOG2_E), LENGTH, PARTS, token, D, ALIGN)
    store_rows(first(grad_v, b, part, head, batch, token, D, ALIGN), n, acc_v, LENGTH, PARTS, token, D, ALIGN)


class Plan:
    """The launches of one signature: `forward` and `backward`."""

    def __init__(
        self, shape: tuple[int, int, int], strides: tuple[int, ...], num_parts: int, num_heads: int,
        dtype: torch.dtype, precision: str, device: torch.device,
    ):  # fmt: skip
        batch, tokens, channels = shape
        self.head_dim, self.length, self.dtype = channels // num_heads, tokens // num_parts, dtype
        self.sequences = batch * num_parts * num_heads
        self.processors = processors(device)
        self.context = dtype, precision, device
        names = ("QB", "QN", "KB", "KN", "VB", "VN")
        self.sizes = {"B": batch, "LENGTH": self.length, "PARTS": num_parts, "HEADS": num_heads}
        self.sizes |= dict(zip(names, strides, strict=True))
        self.constants = {
            "SCALE": self.head_dim**-0.5 * LOG2_E.value, "D": self.head_dim, "ALIGN": 16 // dtype.itemsize,
            "PRECISION": precision,
        }  # fmt: skip
        self.dtypes = dict.fromkeys({*FORWARD, *BACKWARD}, dtype)
        self.dtypes |= dict.fromkeys(("logsumexp", "delta"), torch.float32)
        self.forward = (self._launch(attention_forward_kernel, FORWARD, "BM"),)
        self.backward = (
            self._launch(query_gradient_kernel, BACKWARD, "BM"),
            self._launch(key_value_gradient_kernel, BACKWARD, "BN"),
        )

    def _launch(self, kernel: Any, names: Sequence[str], rows: str) -> Launch:
        """Return a launch whose programs own blocks of `rows`."""
        own, other, warps, stages = self._blocks(backward=names is BACKWARD)
        across = "BN" if rows == "BM" else "BM"
        mends = {"MEND": self.dtype is not torch.float32 and self.head_dim <= 64}  # beyond, registers do not suffice
        extra = mends if kernel is query_gradient_kernel else {}
        constants = {**self.constants, **extra, "BM": 0, "BN": 0, rows: own, across: other}
        others = [{rows: size, across: other} for size in (own // 2, 2 * own) if 16 <= size <= 128]

        def grid(constants: Mapping[str, Any]) -> Grid:
            return (self.sequences * -(-self.length // constants[rows]), 1, 1)

        parameters = inspect.signature(kernel.fn).parameters
        tensors = [name for name in parameters if name in names]
        return tuning.apply(
            Launch(kernel, grid, tensors, names, self.sizes, constants, warps, others, self.context, stages)
        )

    def _blocks(self, *, backward: bool) -> tuple[int, int, int, int]:
        """Return the rows that a program owns, those that it takes at a time, its warps and its stages."""
        choices = BLOCKS[self.dtype is torch.float32, backward]
        own, other, warps, stages = next(blocks for most, blocks in choices.items() if self.head_dim <= most)
        while own > 16 and own // 2 >= self.length:
            own //= 2
        while own > 64 and self.sequences * -(-self.length // own) < self.processors:  # below, Hopper's products end
            own //= 2
        return own, min(other, max(16, power(self.length))), warps, stages


@functools.lru_cache(maxsize=512)
def plan(shape, strides, num_parts, num_heads, dtype, precision, device) -> Plan:
    """Return the plan of one signature."""
    return Plan(shape, strides, num_parts, num_heads, dtype, precision, device)


def _prepare(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> Plan:
    strides = (q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1))
    return plan(q.shape, strides, num_parts, num_heads, q.dtype, product_precision(q.dtype), q.device)


def forward(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return (out, logsumexp) for q, k and v (B, N, heads * d), whose tokens lie as aligned rows."""
    ready = _prepare(q, k, v, num_parts, num_heads)
    out = q.new_empty(q.shape)
    logsumexp = q.new_empty((q.shape[0], num_parts * num_heads, ready.length), dtype=torch.float32)
    run(ready.forward, (q, k, v, out, logsumexp))
    return out, logsumexp


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, num_parts: int, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, contiguous."""
    ready = _prepare(q, k, v, num_parts, num_heads)
    grads = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
    run(ready.backward, (q, k, v, out, grad_out, logsumexp, torch.empty_like(logsumexp), *grads))
    return grads
