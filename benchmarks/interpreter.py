"""Triton's interpreter: in half of the time and less, and with a GPU's bfloat16."""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import numpy as np


@functools.cache
def builtins(package: ModuleType | type) -> list[str]:
    """The names in a package, or a class, of Triton's language that the interpreter replaces by its own."""
    from triton.language.core import is_builtin

    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


def members(package: ModuleType | type) -> list[tuple[str, object]]:
    """What is to be replaced, by name: nothing where that has been done, which is all or nothing."""
    from triton.language.core import is_builtin

    names = builtins(package)
    done = names and not is_builtin(getattr(package, names[0]))
    return [] if done else [(name, getattr(package, name)) for name in names]


@contextmanager
def quick() -> Iterator[None]:
    """Find once what the interpreter seeks anew: what it replaces in each call of a function of a kernel's, and what a
    type says of a value's shape for each value."""
    from triton.language import core
    from triton.runtime import interpreter

    make_block, make_tensor, in_numpy = core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype
    blocks: dict[tuple, dict] = {}  # the attributes of a type of blocks, by what it is made of
    tensors: dict[tuple, dict] = {}  # those of a value, by its type
    numpys: dict[tuple, np.dtype] = {}  # NumPy's type, by Triton's, of which pointers have no hash

    def block(self, element_ty, shape):
        key = type(element_ty), element_ty.name, *(core._unwrap_if_constexpr(size) for size in shape)
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        vars(self).update(blocks[key], element_ty=element_ty)

    def tensor(self, handle, type_):
        key = type(type_), type_.name
        if key not in tensors:
            make_tensor(self, handle, type_)
            tensors[key] = dict(vars(self))
        vars(self).update(tensors[key], handle=handle, type=type_, dtype=type_.scalar)

    def numpy(type_):
        key = type(type_), type_.name
        if key not in numpys:
            numpys[key] = in_numpy(type_)
        return numpys[key]

    with (
        patch.object(interpreter, "inspect", SimpleNamespace(**{**vars(inspect), "getmembers": members})),
        patch.object(interpreter, "_get_np_dtype", numpy),
        patch.object(core.block_type, "__init__", block),
        patch.object(core.tensor, "__init__", tensor),
    ):
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Compute without looking whether an integer overflows, which takes a third of the time."""
    from triton.runtime.interpreter import interpreter_builder as builder

    with patch.object(builder, "options", replace(builder.options, sanitize_overflow=False)):
        yield


@contextmanager
def bfloat16() -> Iterator[None]:
    """Convert to the nearest bfloat16, ties to even, and multiply matrices of bfloat16, as a GPU does.

    Triton 3.6 and 3.8 cut the last bits of float32 off, which doubles the error, and take the bits for integers where
    they multiply and where they convert from and to all but float32.
    """
    from triton.runtime import interpreter

    builder, handle, tl = interpreter.InterpreterBuilder, interpreter.TensorHandle, interpreter.tl
    dot, cast, fp_to_fp = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def widened(value):
        return handle(widen(value.data), tl.float32) if value.dtype.scalar == tl.bfloat16 else value

    def create_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    def cast_impl(self, source, target):
        source = widened(source)
        if target.scalar != tl.bfloat16:
            return cast(self, source, target)
        return handle(narrow(cast(self, source, tl.float32).data), tl.bfloat16)

    def create_fp_to_fp(self, source, target, rounding):
        towards_zero = rounding == interpreter._ir.ROUNDING_MODE.RTZ
        if {source.dtype.scalar, target.scalar} != {tl.float32, tl.bfloat16} or towards_zero:
            return fp_to_fp(self, source, target, rounding)
        return cast_impl(self, source, target)

    with patch.multiple(builder, create_dot=create_dot, cast_impl=cast_impl, create_fp_to_fp=create_fp_to_fp):
        yield


def widen(bits: np.ndarray) -> np.ndarray:
    """Return the float32 of bfloat16's bits."""
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Return the bits of the bfloat16 nearest to float32, of two as near the even one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, nearest).astype(np.uint16)  # a NaN stays one
