"""Linear resizing of N tokens to M, as F.interpolate(mode="linear", align_corners=False), and its adjoint, by shifts.

With the source s(o) = (o + 1/2) N / M - 1/2 of output token o, clamped to 0 ... N - 1,

    out(o) = sum over i of hat(s(o) - i) in(i),  hat(t) = max(0, 1 - |t|)

For the tokens of a block o - i takes few values: a kernel loops over it and reads neighbouring tokens each time.
Positions are exact, in integers: for N and M below 2^23, of which neither is much above the other's double.
"""

import triton
import triton.language as tl


@triton.jit
def hat(o0, i0, t, N, M):
    """Return the weights of input tokens i0 + t in output tokens o0 + t, 0 beyond either end."""
    distance = (o0.to(tl.int64) * 2 + 1) * N - M - i0.to(tl.int64) * 2 * M  # of the first, times 2 M
    distance = distance.to(tl.int32) + t * 2 * (N - M)
    o, i = o0 + t, i0 + t
    clamped = ((i == 0) & (distance < 0)) | ((i == N - 1) & (distance > 0))
    share = tl.maximum(2 * M - tl.where(clamped, 0, tl.abs(distance)), 0).to(tl.float32) / (2 * M).to(tl.float32)
    return tl.where((o >= 0) & (o < M) & (i >= 0) & (i < N), share, 0.0)


@triton.jit
def first_input(o, N, M):
    """Return the first input token that output token o reads; the next is the last."""
    one = M.to(tl.int64) * 2
    source = tl.minimum(tl.maximum((o.to(tl.int64) * 2 + 1) * N - M, 0), one * (N - 1))  # times 2 M
    return (source // one).to(tl.int32)


@triton.jit
def input_shifts(o0, N, M, BT: tl.constexpr):
    """Return the least i - o with a weight for output tokens o from o0 on, and one more than the greatest."""
    last = tl.minimum(o0 + BT, M) - 1
    shift_0, shift_1 = first_input(o0, N, M) - o0, first_input(last, N, M) - last  # monotone between
    return tl.minimum(shift_0, shift_1), tl.maximum(shift_0, shift_1) + 2


@triton.jit
def readers(i, N, M):
    """Return the first and the last output token that read input token i, or lie beyond an end."""
    one = N.to(tl.int64) * 2
    middle = (i.to(tl.int64) * 2 + 1) * M
    first = tl.maximum(middle - 2 * M + N, 0) // one
    return first.to(tl.int32), ((middle + 2 * M - N - 1) // one).to(tl.int32)


@triton.jit
def output_shifts(i0, N, M, BT: tl.constexpr):
    """Return the least o - i with a weight for input tokens i from i0 on, and one more than the greatest."""
    last = tl.minimum(i0 + BT, N) - 1
    first_0, last_0 = readers(i0, N, M)
    first_1, last_1 = readers(last, N, M)
    return tl.minimum(first_0 - i0, first_1 - last), tl.maximum(last_0 - i0, last_1 - last) + 1
