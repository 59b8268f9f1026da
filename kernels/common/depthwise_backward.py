"""Backward of the depthwise convolutions: the gradient of x, and those of the parameters in parts, for `batch_sum`."""

import triton
import triton.language as tl

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
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, weights, grad_x, C, H, W,
    J: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    K4: tl.constexpr, K5: tl.constexpr, K6: tl.constexpr, K7: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr,
    S4: tl.constexpr, S5: tl.constexpr, S6: tl.constexpr, S7: tl.constexpr,
    LARGEST: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of channels, parts of the places)."""
    grads = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    kernels: tl.constexpr = (K0, K1, K2, K3, K4, K5, K6, K7)
    strides: tl.constexpr = (S0, S1, S2, S3, S4, S5, S6, S7)
    C = C // ALIGN * ALIGN
    b, c0 = channel_block(C, BC)
    first, end = part_of_places(H, W, Q, BF)
    for block in range(first, end):
        c, h, w, here = places(c0, block * BF, C, H, W, Q, BC, BF)
        sums = zeros(Q, BC, BF)
        taps = weights
        for j in tl.static_range(J):
            HJ, WJ = tl.cdiv(H, strides[j]), tl.cdiv(W, strides[j])
            grad = sample(grads[j], b, C * HJ * WJ)
            for v in range(kernels[j]):
                column = w + kernels[j] // 2 - v  # of x at the centre of the kernel
                rows = window(
                    grad, c, h // strides[j], column // strides[j], here & (column % strides[j] == 0), C, HJ, WJ,
                    -(kernels[j] // 2 // strides[j]),
                    (Q - 1 + kernels[j] // 2) // strides[j] + kernels[j] // 2 // strides[j] + 1, NHWC,
                )  # fmt: skip
                sums = add_transposed(sums, rows, taps, c, v, C, kernels[j], strides[j], Q)
            taps += kernels[j] * kernels[j] * C
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


@kernel
def depthwise_params_kernel(
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, x,
    scratch,  # [parts, taps and biases of all channels]: weights like (C, K, K), then biases
    B, C, H, W,
    J: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    K4: tl.constexpr, K5: tl.constexpr, K6: tl.constexpr, K7: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr,
    S4: tl.constexpr, S5: tl.constexpr, S6: tl.constexpr, S7: tl.constexpr,
    LARGEST: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Grid (parts of all samples' places x blocks of channels); a part is PART blocks of places."""
    grads = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    kernels: tl.constexpr = (K0, K1, K2, K3, K4, K5, K6, K7)
    strides: tl.constexpr = (S0, S1, S2, S3, S4, S5, S6, S7)
    C = C // ALIGN * ALIGN
    part, c0 = channel_block(C, BC)
    blocks = tl.cdiv(tl.cdiv(H, Q) * W, BF)  # of one sample
    first = part * PART
    end = tl.minimum(first + PART, B * blocks)
    count = 0
    for j in tl.static_range(J):
        count += kernels[j] * kernels[j] + 1
    scratch = sample(scratch, part, count * C)
    channel = c0 + tl.arange(0, BC)
    for v in range(LARGEST):
        dv = v - LARGEST // 2
        sums = ()
        for j in tl.static_range(J):
            sums += (zeros(kernels[j], BC, BF),)
        for block in range(first, end):
            b = block // blocks
            c, h, w, here = places(c0, block % blocks * BF, C, H, W, Q, BC, BF)
            rows = window(
                sample(x, b, C * H * W), c, h, w + dv, here, C, H, W, -(LARGEST // 2), Q + LARGEST - 1, NHWC
            )  # fmt: skip
            new = ()
            for j in tl.static_range(J):
                taps = sums[j]
                if (dv >= -(kernels[j] // 2)) & (dv <= kernels[j] // 2):
                    outputs = gradients(grads[j], b, c, h, w, here, C, H, W, strides[j], Q, NHWC)
                    taps = add_products(taps, rows, outputs, kernels[j], strides[j], LARGEST, Q)
                new += (taps,)
            sums = new
        at = scratch
        for j in tl.static_range(J):
            if (dv >= -(kernels[j] // 2)) & (dv <= kernels[j] // 2):
                for u in tl.static_range(kernels[j]):
                    place = (channel * kernels[j] + u) * kernels[j] + kernels[j] // 2 + dv
                    tl.store(at + place, tl.sum(sums[j][u], axis=1), mask=channel < C)
            at += kernels[j] * kernels[j] * C
    for j in tl.static_range(J):
        total = tl.zeros([BC, BF], tl.float32)
        for block in range(first, end):
            b = block // blocks
            c, h, w, here = places(c0, block % blocks * BF, C, H, W, Q, BC, BF)
            outputs = gradients(grads[j], b, c, h, w, here, C, H, W, strides[j], Q, NHWC)
            for i in tl.static_range(Q // strides[j]):
                total += outputs[i]
        tl.store(scratch + (count - J + j) * C + channel, tl.sum(total, axis=1), mask=channel < C)
