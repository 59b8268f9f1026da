"""Sizes and options at which the fast paths take different ways."""

import torch

from tests.helpers import draw, make

# id: (B, C, H, W, options)
CASES = {
    "default": (2, 32, 14, 14, {}),
    "least channels": (2, 4, 8, 9, {}),
    "group of two": (3, 8, 7, 8, {}),
    "group of five, no vector's multiple": (2, 20, 9, 16, {}),
    "group of nine": (2, 36, 15, 7, {}),
    "twelve per group, odd map": (2, 48, 23, 31, {}),
    "fifteen per group": (1, 60, 13, 11, {}),
    "144 channels, one pixel left": (2, 144, 7, 7, {}),
    "channels past one vector block": (1, 272, 7, 9, {}),
    "one row": (2, 8, 1, 19, {"window_size": 1}),
    "one column": (2, 8, 17, 1, {"window_size": 1}),
    "one pixel": (3, 16, 1, 1, {"window_size": 1}),
    "two by two, window one": (2, 16, 2, 2, {"window_size": 1}),
    "shorter than every kernel": (2, 16, 2, 3, {"window_size": 2}),
    "window as large as the map": (2, 16, 9, 9, {"window_size": 9}),
    "window fits one way only once": (2, 16, 9, 40, {"window_size": 8}),
    "many small windows": (1, 16, 33, 34, {"window_size": 2}),
    "window leaves a remainder": (2, 16, 20, 23, {"window_size": 6}),
    "wide map": (1, 8, 7, 130, {}),
    "tall map": (1, 8, 130, 7, {}),
    "56 by 56": (1, 16, 56, 56, {}),
    "global average": (2, 32, 12, 15, {"window_size": -1}),
    "global average, heads": (2, 32, 12, 15, {"window_size": -1, "head_num": 4}),
    "global average, whatever the mode": (2, 16, 5, 6, {"window_size": -1, "down_sample_mode": "max_pool"}),
    "heads": (2, 48, 14, 14, {"head_num": 6}),
    "heads of three channels": (2, 24, 14, 15, {"head_num": 8}),
    "a head per channel": (2, 16, 14, 14, {"head_num": 16}),
    "bias": (2, 24, 14, 14, {"qkv_bias": True}),
    "bias, one pixel left": (2, 64, 7, 7, {"qkv_bias": True}),
    "bias, heads, odd map": (2, 24, 15, 22, {"qkv_bias": True, "head_num": 2, "window_size": 4}),
    "max pooling": (2, 16, 15, 17, {"down_sample_mode": "max_pool", "window_size": 4}),
    "max pooling, heads, bias": (
        2,
        24,
        14,
        21,
        {"down_sample_mode": "max_pool", "head_num": 3, "qkv_bias": True},
    ),
    "max pooling, window one": (1, 8, 5, 6, {"down_sample_mode": "max_pool", "window_size": 1}),
    "softmax gates": (2, 32, 14, 15, {"gate_layer": "softmax"}),
    "softmax gates, max pooling": (2, 16, 9, 10, {"gate_layer": "softmax", "down_sample_mode": "max_pool"}),
    "softmax gates, global average": (2, 16, 9, 10, {"gate_layer": "softmax", "window_size": -1}),
    "kernels of one": (2, 16, 8, 9, {"group_kernel_sizes": (1, 1, 1, 1)}),
    "kernels out of order": (2, 16, 10, 9, {"group_kernel_sizes": (9, 1, 5, 3)}),
    "kernels longer than the map": (2, 16, 8, 9, {"group_kernel_sizes": (17, 19, 21, 31)}),
    "batch of five": (5, 16, 8, 10, {}),
    "larger than a megabyte": (2, 72, 70, 61, {}),
    "larger than a megabyte, narrow": (2, 72, 600, 7, {}),
}
ACCEPTED = {
    "smsa": {"group_kernel_sizes", "gate_layer"},
    "pcsa": {"head_num", "window_size", "qkv_bias", "down_sample_mode", "gate_layer"},
}
OPERATIONS = ("scsa", "smsa", "pcsa")


def make_case(name, case, dtype=torch.float32, memory_format=torch.contiguous_format):
    """Return the module and the input of a case; the parts take those of its options that they know."""
    *shape, options = CASES[case]
    known = ACCEPTED.get(name, options.keys())
    options = {key: value for key, value in options.items() if key in known}
    return make(name, shape[1], dtype=dtype, **options), draw(*shape, dtype=dtype, memory_format=memory_format)
