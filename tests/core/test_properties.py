"""Shapes and options that nobody chose: hypothesis draws them, the same ones every time."""

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import DTYPES, FAST, FORMATS, FULL, check, draw, make

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("fast")]
steady = settings(
    max_examples=(12 if FULL else 2) if FAST == "triton" else 150 if FULL else 40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
kernel = st.sampled_from((1, 3, 5, 7, 9, 11, 15))


@st.composite
def calls(draw_from):
    """Draw the shape of x and every option of SCSA that goes with it.

    A channel group has two channels and 16 values along an axis at least. With less, GroupNorm takes out most of
    what the convolution does, and the error of a gradient is a matter of luck: test_fast_paths.py compares such maps
    with eager over many draws.
    """
    dim = 4 * draw_from(st.integers(2, 24))
    least = max(1, -(-64 // dim))
    height, width = draw_from(st.integers(least, 34)), draw_from(st.integers(least, 34))
    window = draw_from(st.sampled_from([-1, *range(1, min(height, width, 9) + 1)]))
    return {
        "shape": (draw_from(st.integers(1, 5)), dim, height, width),
        "head_num": draw_from(st.sampled_from([heads for heads in range(1, dim + 1) if dim % heads == 0])),
        "window_size": window,
        "group_kernel_sizes": tuple(draw_from(st.tuples(kernel, kernel, kernel, kernel))),
        "qkv_bias": draw_from(st.booleans()),
        "down_sample_mode": draw_from(st.sampled_from(("avg_pool", "max_pool"))),
        "gate_layer": draw_from(st.sampled_from(("sigmoid", "softmax"))),
    }


@steady
@given(
    call=calls(),
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from(FORMATS),
    threads=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_scsa(call, dtype, memory_format, threads, seed):
    torch.set_num_threads(threads)
    shape = call.pop("shape")
    x = draw(*shape, dtype=dtype, memory_format=memory_format, seed=seed)
    got = check(make("scsa", shape[1], dtype=dtype, seed=seed, **call), x)
    assert got["out"].stride() == torch.empty_like(x).stride()


@steady
@given(
    call=calls(),
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from(FORMATS),
    seed=st.integers(0, 3),
)
def test_parts(call, dtype, memory_format, seed):
    shape, kernels = call.pop("shape"), call.pop("group_kernel_sizes")
    x = draw(*shape, dtype=dtype, memory_format=memory_format, seed=seed)
    check(make("pcsa", shape[1], dtype=dtype, seed=seed, **call), x)
    gate = call["gate_layer"]
    check(make("smsa", shape[1], dtype=dtype, seed=seed, group_kernel_sizes=kernels, gate_layer=gate), x)


@steady
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    steps=st.tuples(*[st.integers(1, 3)] * 4),
    start=st.integers(0, 2),
    order=st.permutations(range(4)),
)
def test_any_strides(batch, channels, height, width, steps, start, order):
    """Any view gives what its dense copy gives."""
    shape = (batch, channels, height, width)
    storage = draw(*[shape[axis] * steps[axis] + start for axis in order], seed=0).permute(
        [order.index(i) for i in range(4)]
    )
    x = storage[tuple(slice(start, start + n * step, step) for n, step in zip(shape, steps, strict=True))]
    assert x.shape == shape
    module = make("pcsa", channels, window_size=1)
    torch.testing.assert_close(module(x), module(x.contiguous()))
