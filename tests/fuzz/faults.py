"""Mistakes to plant in the extension's SCSA, by name: the fuzzer has to find every one of them."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor

from fastattn.scsa import native

_calls = count()


def write(address: int) -> None:
    """Change a byte, wherever it is."""
    byte = ctypes.c_ubyte.from_address(address)
    byte.value += 1


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Put a mistake into SCSA's forward or backward."""
    direction, spoil = FAULTS[name]
    right = getattr(native, direction)

    def wrong(operation, *arguments):
        return spoil(arguments, *right(operation, *arguments))

    setattr(native, direction, wrong)
    try:
        yield
    finally:
        setattr(native, direction, right)


def _wrong_input_gradient(arguments, grad_x: Tensor, grads: Tensor):
    return grad_x * (1 + 2**-6), grads


def _wrong_parameter_gradient(arguments, grad_x: Tensor, grads: Tensor):
    grads[-1:] *= 1 + 2**-6
    return grad_x, grads


def _wrong_element(arguments, out: Tensor, saved: Tensor):
    out.as_strided((1,), (1,)).mul_(2).add_(1)
    return out, saved


def _not_a_number(arguments, out: Tensor, saved: Tensor):
    out.as_strided((1,), (1,)).fill_(torch.nan)
    return out, saved


def _unsteady(arguments, out: Tensor, saved: Tensor):
    if next(_calls) % 2:
        write(out.data_ptr())
    return out, saved


def _writes_beyond(arguments, out: Tensor, saved: Tensor):
    write(out.data_ptr() + out.nbytes)
    return out, saved


def _writes_before(arguments, out: Tensor, saved: Tensor):
    write(out.data_ptr() - 1)
    return out, saved


def _reads_beyond(arguments, out: Tensor, saved: Tensor):
    ctypes.string_at(arguments[0].data_ptr() + arguments[0].nbytes, 4)
    return out, saved


def _changes_input(arguments, out: Tensor, saved: Tensor):
    write(arguments[0].data_ptr())
    return out, saved


def _crashes(arguments, out: Tensor, saved: Tensor):
    ctypes.string_at(0)


def _wrong_error(arguments, out: Tensor, saved: Tensor):
    raise IndexError("list index out of range")


def _refuses(arguments, out: Tensor, saved: Tensor):
    raise ValueError("x does not please")


# name: (direction, what becomes of its results, given its arguments)
FAULTS = {
    "wrong input gradient": ("backward", _wrong_input_gradient),
    "wrong parameter gradient": ("backward", _wrong_parameter_gradient),
    "wrong element": ("forward", _wrong_element),
    "not a number": ("forward", _not_a_number),
    "unsteady": ("forward", _unsteady),
    "writes beyond": ("forward", _writes_beyond),
    "writes before": ("forward", _writes_before),
    "reads beyond": ("forward", _reads_beyond),
    "changes its input": ("forward", _changes_input),
    "crashes": ("forward", _crashes),
    "wrong error": ("forward", _wrong_error),
    "refuses": ("forward", _refuses),
}
