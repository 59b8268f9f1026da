"""The one assertion on numbers: errors against float64, measured by eager's own."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# An error may be this many times eager's own in the same dtype, or this large, whichever is more: 1e-5 is the
# room that float32 has where eager is lucky, and far below what rounding the result to bfloat16 or float16
# costs.
TIMES_EAGER = {torch.float64: 2, torch.float32: 2, torch.bfloat16: 2, torch.float16: 2}
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
# Relative to its neighbours, below this a float64 tensor is zero in exact arithmetic.
ZERO = 1e-11


class Error(NamedTuple):
    """A tensor's relative error, what it may be, and eager's own."""

    error: float
    allowed: float
    eager: float

    @property
    def share(self) -> float:
        """Of what is allowed; more than 1 is wrong, and infinite where the error is no number."""
        return self.error / self.allowed if self.error == self.error else math.inf

    def __str__(self) -> str:
        return f"error {self.error:.2e}, allowed {self.allowed:.2e}, eager's {self.eager:.2e}"


def errors(
    got: Mapping[str, Tensor], truth: Mapping[str, Tensor], *eager: Mapping[str, Tensor], room: float = 1.0
) -> dict[str, Error]:
    """Return every tensor's relative error against the float64 truth beside its dtype's tolerance.

    Eager's own error is the largest of several runs that differ in the order of their sums alone. `room` is how many
    times the tolerance a rival may have whose rounding is not this package's.
    A tensor that is zero in exact arithmetic is compared absolutely, on the scale (greatest root mean square)
    of its neighbours: of the gradients for a gradient.
    """
    assert got.keys() == truth.keys() == eager[0].keys(), f"{[*got]} are not {[*truth]}, eager's {[*eager[0]]}"
    rms = {name: _rms(tensor) for name, tensor in truth.items()}
    found = {}
    for name, exact in truth.items():
        neighbours = max([value for other, value in rms.items() if is_output(other) == is_output(name)], default=0.0)
        scale = rms[name] if rms[name] > ZERO * neighbours else (neighbours or 1.0)
        (shape, dtype), expected = (got[name].shape, got[name].dtype), eager[0][name].dtype
        assert shape == exact.shape, f"{name}: shape {tuple(shape)}, expected {tuple(exact.shape)}"
        assert dtype == expected, f"{name}: {dtype}, expected {expected}"
        error, *eager_errors = (_rms(run[name].double() - exact) / scale for run in (got, *eager))
        eager_error = max(eager_errors)
        limit = room * max(FLOOR[dtype], TIMES_EAGER[dtype] * eager_error)
        found[name] = Error(error, limit, eager_error)
    return found


def is_output(name: str) -> bool:
    """Whether a tensor is an output, `out` or `out 0`, and not a gradient."""
    return name.partition(" ")[0] == "out"


def assert_accurate(
    got: Mapping[str, Tensor], truth: Mapping[str, Tensor], *eager: Mapping[str, Tensor], room: float = 1.0
) -> None:
    """Assert that every tensor's relative error against the float64 truth is within its tolerance: see `errors`."""
    found = errors(got, truth, *eager, room=room)
    wrong = {f"{name}: {error}": error.share for name, error in found.items() if not error.share <= 1}
    if wrong:  # also where assertions are switched off: benchmarks rely on it
        raise AssertionError("; ".join(sorted(wrong, key=wrong.__getitem__, reverse=True)))  # the worst first


def relative_error(found: Tensor, truth: Tensor) -> float:
    """||found - truth|| / ||truth||."""
    return float((found.double() - truth).norm() / truth.norm())


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
