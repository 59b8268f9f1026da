"""Backward of LGA's scale features. With g the gradient of z and a the shares of a pixel,

    grad_x        = g + w^T dl                     dl = a (da - sum of a da), da_i = sum over channels of g up(u_i);
    grad_u_i      = sum over its readers of a_i g       0 for the share of x itself
    grad_encoding = sum over its readers and the samples of g

The readers of a pixel of another map are a rectangle of pixels, which may be empty where x is smaller. A program of the
main pass writes those pixels of the coarse maps whose first reader it has.
"""

import triton
import triton.language as tl

from ..common.chain import begin
from ..common.maps import aligned, pixels, sample
from .scale_mix_forward import block, coarse_side, kernel, places, read_level, row, share_offsets


@triton.jit
def readers(i, L, M):
    """Return the first place of L that reads place i of M, and the first after it that does not."""
    return tl.cdiv(i * L, M), tl.cdiv((i + 1) * L, M)


@triton.jit
def owned(l, L, M):
    """Return the first place of M whose first reader is not before place l of L."""
    return (l * M + L - M) // L


@triton.jit
def sum_of_readers(
    grad_z, share, samples, c, i, j, known, D, H, W, MH, MW,
    SHARED: tl.constexpr, NHWC: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Sum the gradient over the samples' pixels that read (i, j) of a map of MH x MW: [BC, BQ].

    SHARED, times a share, of one sample.
    """
    first_h, end_h = readers(i, H, MH)
    first_w, end_w = readers(j, W, MW)
    columns = tl.cdiv(W, MW)
    area = tl.cdiv(H, MH) * columns  # the most readers in a sample
    # reduced behind the loops: Triton 3.6 mixes pixels up where it takes such a sum of three axes out of a loop itself
    total = tl.zeros([BC, BQ, BT], tl.float32)
    for _ in range(samples):
        for t0 in range(0, area, BT):
            t = t0 + tl.arange(0, BT)
            h = first_h[:, None] + (t // columns)[None, :]  # [BQ, BT]; beyond the area no row is read
            w = first_w[:, None] + (t % columns)[None, :]
            read = known[:, None] & (h < end_h[:, None]) & (w < end_w[:, None])
            at = pixels(c[:, None, None], h[None, :, :], w[None, :, :], D, H, W, NHWC)
            inside = (c < D)[:, None, None] & read[None, :, :]
            tile = tl.load(grad_z + at, mask=inside, other=0.0).to(tl.float32)
            if SHARED:
                tile *= tl.load(share + (h * W + w), mask=read, other=0.0)[None, :, :]
            total += tile
        grad_z += D * H * W
    return tl.sum(total, axis=2)


@triton.jit
def level_gradient(
    grad_z, share, grad, h0, w0, D, H, W,
    LEVEL: tl.constexpr, NHWC: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Write a sample's gradient of those pixels of a level whose first reader is in the block at (h0, w0)."""
    BI: tl.constexpr = BH >> LEVEL if BH >> LEVEL > 0 else 1
    BJ: tl.constexpr = BW >> LEVEL if BW >> LEVEL > 0 else 1
    MH, MW = coarse_side(H, LEVEL), coarse_side(W, LEVEL)
    end_i, end_j = owned(tl.minimum(h0 + BH, H), H, MH), owned(tl.minimum(w0 + BW, W), W, MW)
    q = tl.arange(0, BI * BJ)
    for i0 in range(owned(h0, H, MH), end_i, BI):
        for j0 in range(owned(w0, W, MW), end_j, BJ):
            i, j = i0 + q // BJ, j0 + q % BJ
            known = (i < end_i) & (j < end_j)
            for c0 in range(0, D, BC):
                c = c0 + tl.arange(0, BC)
                total = sum_of_readers(
                    grad_z, share, 1, c, i, j, known, D, H, W, MH, MW,
                    True, NHWC, BC, BI * BJ, BH * BW // (BI * BJ),
                )  # fmt: skip
                at = pixels(c[:, None], i[None, :], j[None, :], D, MH, MW, NHWC)
                tl.store(grad + at, total, mask=(c < D)[:, None] & known[None, :])


@kernel
def scale_mix_backward_kernel(
    grad_z, x,  # [B, D, H, W]
    us,  # SCALES of [B, D, H / 2^i, W / 2^i]
    weight,  # [SCALES + 1, D]
    shares,  # [B, SCALES + 1, H, W]
    grad_x, grad_us,
    scratch,  # [programs, (SCALES + 1) * (D + 1)]: gradients of weight and bias
    D, H, W,
    SCALES: tl.constexpr, SHARES: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
    BC: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, PARAMS: tl.constexpr,
):  # fmt: skip
    """Grid (samples x blocks of rows x blocks of columns)."""
    begin()
    D, W = aligned(D, W, NHWC, ALIGN)
    b, h0, w0 = block(H, W, BH, BW)
    h, w, known = places(h0, w0, H, W, BH, BW)
    grad_z, x = sample(grad_z, b, D * H * W), sample(x, b, D * H * W)
    grad_x, grad_u = sample(grad_x, b, D * H * W), sample(grad_us[0], b, D * H * W)
    shares = sample(shares, b, (SCALES + 1) * H * W)
    s = tl.arange(0, SHARES)
    known_shares = (s <= SCALES)[:, None] & known[None, :]
    share = tl.load(shares + share_offsets(s, h, w, H, W), mask=known_shares, other=0.0)
    d_share = tl.zeros([SHARES, BH * BW], tl.float32)
    for c0 in range(0, D, BC):
        c = c0 + tl.arange(0, BC)
        inside = (c < D)[:, None] & known[None, :]
        at = pixels(c[:, None], h[None, :], w[None, :], D, H, W, NHWC)
        tile = tl.load(grad_z + at, mask=inside, other=0.0).to(tl.float32)  # [BC, BH * BW]
        for i in tl.static_range(SCALES):
            level = read_level(us[i], b, c, h, w, inside, D, H, W, i, NHWC)
            d_share += tl.where(s[:, None] == i + 1, tl.sum(tile * level, axis=0)[None, :], 0.0)
    d_logits = share * (d_share - tl.sum(share * d_share, axis=0)[None, :])
    parts = scratch + tl.program_id(0).to(tl.int64) * ((SCALES + 1) * (D + 1))
    for c0 in range(0, D, BC):
        c = c0 + tl.arange(0, BC)
        inside = (c < D)[:, None] & known[None, :]
        at = pixels(c[:, None], h[None, :], w[None, :], D, H, W, NHWC)
        tile = tl.load(grad_z + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_u + at, row(share, 1, SHARES)[None, :] * tile, mask=inside)
        if PARAMS:
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        for i in tl.static_range(SCALES + 1):
            factor = tl.load(weight + i * D + c, mask=c < D, other=0.0).to(tl.float32)
            d_logit = row(d_logits, i, SHARES)[None, :]
            tile += factor[:, None] * d_logit
            if PARAMS:
                tl.store(parts + i * D + c, tl.sum(value * d_logit, axis=1), mask=c < D)
        tl.store(grad_x + at, tile, mask=inside)
    if PARAMS:
        tl.store(parts + (SCALES + 1) * D + s, tl.sum(d_logits, axis=1), mask=s <= SCALES)
    for i in tl.static_range(1, SCALES):
        grad = sample(grad_us[i], b, D * coarse_side(H, i) * coarse_side(W, i))
        level_gradient(grad_z, shares + (i + 1) * H * W, grad, h0, w0, D, H, W, i, NHWC, BC, BH, BW)


@kernel
def encoding_gradient_kernel(
    grad_z,  # [B, D, H, W]
    encoding_scratch,  # [parts, D, PH, PW]
    B, D, H, W, PH, PW,
    NHWC: tl.constexpr, ALIGN: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels x blocks of the encoding's pixels, parts of the batch)."""
    begin()
    D, W = aligned(D, W, NHWC, ALIGN)
    blocks = tl.cdiv(PH * PW, BQ)
    c = tl.program_id(0) // blocks * BC + tl.arange(0, BC)
    q = tl.program_id(0) % blocks * BQ + tl.arange(0, BQ)
    part = tl.program_id(1)
    samples = tl.cdiv(B, tl.num_programs(1))
    grad_z = sample(grad_z, part * samples, D * H * W)
    samples = tl.minimum(samples, B - part * samples)  # of the last parts, fewer or none
    i, j, known = q // PW, q % PW, q < PH * PW
    total = sum_of_readers(grad_z, grad_z, samples, c, i, j, known, D, H, W, PH, PW, False, NHWC, BC, BQ, BT)
    at = sample(encoding_scratch, part, D * PH * PW) + (c[:, None] * (PH * PW) + q[None, :])
    tl.store(at, total, mask=(c < D)[:, None] & known[None, :])
