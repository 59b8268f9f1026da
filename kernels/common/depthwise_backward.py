"""Backward of the depthwise convolutions: the gradient of x, and those of the parameters in parts, for `batch_sum`."""

import triton
import triton.language as tl

from .chain import begin
from .depthwise_forward import part_of_places, places, window
from .maps import channel_block, kernel, pixels, sample
from .tuples import zeros


@triton.jit
def add_transposed(sums, rows, weights, c, v, C, K: tl.constexpr, S: tl.constexpr, Q: tl.constexpr):
    """Return the sums of x's gradients plus what a column v of a kernel makes of rows of its output's gradient."""
    for u in tl.static_range(K):
        weight = tl.load(weights + (u * K + v) * C + c, mask=c < C, other=0.0).to(tl.float32)
        more = ()
        for i in tl.static_range(Q):
            if (i + K // 2 - u) % S == 0:
                more += (sums[i] + rows[(i + K // 2 - u) // S + K // 2 // S] * weight,)
            else:
                more += (sums[i],)
        sums = more
    return sums


@kernel
def depthwise_input_kernel(
    grads,  # of J outputs
    weights, grad_x, C, H, W,
    J: tl.constexpr, KERNELS: tl.constexpr, STRIDES: tl.constexpr, LARGEST: tl.constexpr,
    NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the places)."""
    begin()
    C = C // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    first, end = part_of_places(H, W, Q, BF)
    for block in range(first, end):
        c, h, w, here = places(c0, block * BF, C, H, W, Q, BC, BF)
        sums = zeros(Q, BC, BF)
        taps = weights
        for j in tl.static_range(J):
            HJ, WJ = tl.cdiv(H, STRIDES[j]), tl.cdiv(W, STRIDES[j])
            grad = sample(grads[j], b, C * HJ * WJ)
            for v in range(KERNELS[j]):
                column = w + KERNELS[j] // 2 - v  # of x at the centre of the kernel
                rows = window(
                    grad, c, h // STRIDES[j], column // STRIDES[j], here & (column % STRIDES[j] == 0), C, HJ, WJ,
                    -(KERNELS[j] // 2 // STRIDES[j]),
                    (Q - 1 + KERNELS[j] // 2) // STRIDES[j] + KERNELS[j] // 2 // STRIDES[j] + 1, NHWC,
                )  # fmt: skip
                sums = add_transposed(sums, rows, taps, c, v, C, KERNELS[j], STRIDES[j], Q)
            taps += KERNELS[j] * KERNELS[j] * C
        at = sample(grad_x, b, C * H * W) + pixels(c, h, w, C, H, W, NHWC)
        row = W * C if NHWC else W
        for i in tl.static_range(Q):
            tl.store(at + i * row, sums[i], mask=here & (h + i < H))


@triton.jit
def gradients(grad, b, c, h, w, here, C, H, W, S: tl.constexpr, Q: tl.constexpr, NHWC: tl.constexpr):
    """Return the gradients of the outputs at a block's places: Q // S tiles [BC, BF]."""
    HJ, WJ = tl.cdiv(H, S), tl.cdiv(W, S)
    here &= w % S == 0
    return window(sample(grad, b, C * HJ * WJ), c, h // S, w // S, here, C, HJ, WJ, 0, Q // S, NHWC)


@triton.jit
def add_products(sums, rows, outputs, K: tl.constexpr, S: tl.constexpr, LARGEST: tl.constexpr, Q: tl.constexpr):
    """Return the sums of the gradients of a column of taps plus its products at a block of places."""
    for i in tl.static_range(Q // S):
        more = ()
        for u in tl.static_range(K):
            more += (sums[u] + rows[i * S + u + (LARGEST - K) // 2] * outputs[i],)
        sums = more
    return sums


@triton.jit
def store_taps(scratch, sums, channel, dv, C, K: tl.constexpr):
    """Write the gradients of the column of taps that is dv to the right of the centre."""
    for u in tl.static_range(K):
        place = (channel * K + u) * K + K // 2 + dv
        tl.store(scratch + place, tl.sum(sums[u], axis=1), mask=channel < C)


@kernel
def depthwise_params_kernel(
    grads, x,
    scratch,  # [parts, taps and biases of all channels]: weights like (C, K, K), then biases
    B, C, H, W,
    J: tl.constexpr, KERNELS: tl.constexpr, STRIDES: tl.constexpr, LARGEST: tl.constexpr,
    NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Grid (parts of all samples' places x blocks of channels); a part is PART blocks of places."""
    begin()
    C = C // ALIGN * ALIGN
    part, c0 = channel_block(C, BC)
    blocks = tl.cdiv(tl.cdiv(H, Q) * W, BF)  # of one sample
    first = part * PART
    end = tl.minimum(first + PART, B * blocks)
    count = 0
    for j in tl.static_range(J):
        count += KERNELS[j] * KERNELS[j] + 1
    scratch = sample(scratch, part, count * C)
    channel = c0 + tl.arange(0, BC)
    for v in range(LARGEST):
        dv = v - LARGEST // 2
        sums = ()
        for j in tl.static_range(J):
            sums += (zeros(KERNELS[j], BC, BF),)
        for block in range(first, end):
            b = block // blocks
            c, h, w, here = places(c0, block % blocks * BF, C, H, W, Q, BC, BF)
            rows = window(
                sample(x, b, C * H * W), c, h, w + dv, here, C, H, W, -(LARGEST // 2), Q + LARGEST - 1, NHWC
            )  # fmt: skip
            new = ()
            for j in tl.static_range(J):
                taps = sums[j]
                if (dv >= -(KERNELS[j] // 2)) & (dv <= KERNELS[j] // 2):
                    outputs = gradients(grads[j], b, c, h, w, here, C, H, W, STRIDES[j], Q, NHWC)
                    taps = add_products(taps, rows, outputs, KERNELS[j], STRIDES[j], LARGEST, Q)
                new += (taps,)
            sums = new
        at = scratch
        for j in tl.static_range(J):
            if (dv >= -(KERNELS[j] // 2)) & (dv <= KERNELS[j] // 2):
                store_taps(at, sums[j], channel, dv, C, KERNELS[j])
            at += KERNELS[j] * KERNELS[j] * C
    for j in tl.static_range(J):
        total = tl.zeros([BC, BF], tl.float32)
        for block in range(first, end):
            b = block // blocks
            c, h, w, here = places(c0, block % blocks * BF, C, H, W, Q, BC, BF)
            outputs = gradients(grads[j], b, c, h, w, here, C, H, W, STRIDES[j], Q, NHWC)
            for i in tl.static_range(Q // STRIDES[j]):
                total += outputs[i]
        tl.store(scratch + (count - J + j) * C + channel, tl.sum(total, axis=1), mask=channel < C)
