"""One call of the extension, forward and backward, without torch: python bare.py _native.abi3.so prints what came out.

On every Python it must be the same.
"""

import hashlib
import importlib.util
import sys
from array import array

spec = importlib.util.spec_from_file_location("fastattn._native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)

BATCH, TOKENS, CHANNELS, CONCEPTS = 2, 50, 32, 6
SIZES = (CONCEPTS * CHANNELS, CHANNELS**2, CHANNELS, CHANNELS**2, CHANNELS)  # of the parameters


def numbers(count: int, seed: int) -> array:
    """Return pseudo-random floats within 0.5 of zero."""
    found = array("f")
    for _ in range(count):
        seed = (seed * 1103515245 + 12345) % 2**31
        found.append(seed / 2**31 - 0.5)
    return found


def addresses(arrays: list[array]) -> list[int]:
    return [one.buffer_info()[0] for one in arrays]


plan = native.CatPlan(BATCH, TOKENS, CHANNELS, CONCEPTS, 0, 0)
x, params = numbers(BATCH * TOKENS * CHANNELS, 1), [numbers(size, seed) for seed, size in enumerate(SIZES, 2)]
out, grad_x, *grads = (array("f", bytes(4 * size)) for size in (len(x), len(x), *SIZES))
saved = array("f", bytes(4 * BATCH * plan.saved_size))
p_x, p_out, p_saved, p_grad_x = addresses([x, out, saved, grad_x])
plan.forward(p_x, p_out, p_saved, addresses(params), 2)
plan.backward(p_x, p_x, p_saved, addresses(params), p_grad_x, addresses(grads), 2)
print(native.isa(), hashlib.sha256(b"".join(one.tobytes() for one in (out, grad_x, *grads))).hexdigest())
