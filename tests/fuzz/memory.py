"""Memory in which every access out of bounds shows: a tensor lies alone between pages that nobody may touch."""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
PROT_NONE = 0
FILL = b"\xa5"
_empty = torch.empty  # the one that is not replaced
_libc = ctypes.CDLL(None, use_errno=True)


class _Piece(NamedTuple):
    pages: mmap.mmap
    begin: int
    end: int


class Arena:
    """The memory of one call. `side` says which end of a tensor is flush with a forbidden page, "end" or "start"; with
    None the memory is torch's own."""

    def __init__(self, side: str | None):
        self.side = side
        self._pieces: list[_Piece] = []

    def vector(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return memory of `count` elements, NaN where the dtype has it."""
        size = count * dtype.itemsize
        if self.side is None or size == 0:
            flat = torch.zeros(count, dtype=dtype)
        else:
            inner = -(-size // PAGE) * PAGE
            pages = mmap.mmap(-1, inner + 2 * PAGE)
            pages[:] = FILL * len(pages)
            address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
            for forbidden in (address, address + PAGE + inner):
                if _libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(PAGE), PROT_NONE):
                    raise OSError(ctypes.get_errno(), "mprotect failed")
            begin = PAGE if self.side == "start" else PAGE + inner - size
            self._pieces.append(_Piece(pages, begin, begin + size))
            flat = torch.frombuffer(pages, dtype=dtype, count=count, offset=begin)
        return flat.fill_(torch.nan) if dtype.is_floating_point or dtype.is_complex else flat

    def strided(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, offset: int = 0) -> Tensor:
        """Return a tensor, no view, whose last element ends its memory and whose first has `offset` before it."""
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0
        flat = self.vector(offset + span, dtype)
        return _empty(0, dtype=dtype).set_(flat.untyped_storage(), flat.storage_offset() + offset, shape, strides)

    @contextmanager
    def serves_empty(self) -> Iterator[None]:
        """Give what asks torch for empty tensors memory of the arena: outputs, gradients, and what is kept."""
        makers = ((torch, "empty_like"), (torch, "empty"), (Tensor, "new_empty"))
        before = [getattr(owner, name) for owner, name in makers]

        def guarded(make):
            def made(*arguments, **named):
                plain = make(*arguments, **named)
                if self.side is None or type(plain) is not Tensor or plain.device.type != "cpu" or not plain.numel():
                    return plain
                return self.strided(plain.shape, plain.stride(), plain.dtype)

            return made

        for (owner, name), make in zip(makers, before, strict=True):
            setattr(owner, name, guarded(make))
        try:
            yield
        finally:
            for (owner, name), make in zip(makers, before, strict=True):
                setattr(owner, name, make)

    def spilled(self) -> bool:
        """Return whether something was written beside a tensor, on its own pages."""
        return any(
            piece.pages[start:stop].strip(FILL)
            for piece in self._pieces
            for start, stop in ((PAGE, piece.begin), (piece.end, len(piece.pages) - PAGE))
        )


def strides(shape: Sequence[int], layout: dict) -> list[int]:
    """Return the strides of a layout as `cases` draws them."""
    found, stride = [0] * len(shape), 1
    for axis in reversed(layout["order"]):
        found[axis] = 0 if axis in layout["expand"] else stride * layout["step"][axis]
        stride *= 1 if axis in layout["expand"] else max(1, shape[axis] * layout["step"][axis] + layout["pad"][axis])
    return found


def lay(arena: Arena, values: Tensor, layout: dict) -> Tensor:
    """Return the values as they lie in a layout; along an expanded axis the first ones stand for all."""
    shape = values.shape
    tensor = arena.strided(shape, strides(shape, layout), values.dtype, layout["offset"])
    for axis in layout["expand"]:
        values = values.narrow(axis, 0, min(1, shape[axis]))
    tensor.as_strided(values.shape, tensor.stride()).copy_(values)
    return tensor


def contents(tensor: Tensor) -> Tensor:
    """Return a copy of all bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()
