"""One launch of a kernel inside a plan: what does not change from call to call is bound once."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from . import chain

Grid = tuple[int, int, int]
Argument = Tensor | tuple[Tensor, ...]


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many multiprocessors a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132  # as on an H200


def aligned(*tensors: Tensor) -> tuple[bool, ...]:
    """Return which tensors start where 128 bits can be read at a time: Triton compiles for it."""
    return tuple(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def flat(arguments: Iterable[Argument]) -> list[Tensor]:
    """Return all tensors of a call."""
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, tuple):
            tensors += argument
        else:
            tensors.append(argument)
    return tensors


def product_precision(dtype: torch.dtype) -> str:
    """Return how float32 operands are multiplied by tensor cores: as torch is told to do it."""
    if dtype is not torch.float32:
        return "tf32"  # does not matter
    try:
        precise = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by the newer interface, which the older one refuses to read
        precise = torch.backends.cuda.matmul.fp32_precision != "tf32"
    return "tf32x3" if precise else "tf32"


class Launch:
    """A kernel with its grid, sizes and configuration; called with the tensors of one call, or tuples of them.

    `tensors` names the tensors that the kernel takes, in its order; `names` is the order in which a call
    brings them. The kernel's parameters are those tensors, then `sizes`, then `constants`, of which
    `alternatives` holds other values, for tuning; `grid` follows from the constants. `context` is what
    tuning must keep apart besides: dtypes and device. `num_stages` is how far loads run ahead in a loop of products.
    `registers` is the most that a thread may take; without it ptxas weighs them against resident blocks, and may spill
    a few for one block more.
    """

    def __init__(
        self,
        kernel: Any,
        grid: Callable[[Mapping[str, Any]], Grid],
        tensors: Sequence[str],
        names: Sequence[str],
        sizes: Mapping[str, int | tuple[int, ...]],
        constants: Mapping[str, Any],
        num_warps: int,
        alternatives: Sequence[Mapping[str, int]] = (),
        context: tuple = (),
        num_stages: int = 3,
        registers: int | None = None,
    ):
        self.kernel, self.tensors, self.sizes = kernel, tuple(tensors), dict(sizes)
        self.grid_of, self.alternatives, self.context = grid, tuple(alternatives), context
        self.num_stages, self.registers = num_stages, registers
        first, *others = map(list(names).index, tensors)
        self._pick = itemgetter(first, *others) if others else itemgetter(slice(first, first + 1))
        self.configure(constants, num_warps)

    def configure(self, constants: Mapping[str, Any], num_warps: int) -> None:
        """Change constants and warps; the next call compiles."""
        self.constants, self.num_warps = dict(constants), num_warps
        self.grid = self.grid_of(self.constants)
        self._bound = (*self.sizes.values(), *self.constants.values())
        self._run: Callable[..., None] | None = None

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options if self.registers is None else options | {"maxnreg": self.registers}

    def pick(self, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """Return the kernel's own tensors out of a call's."""
        return self._pick(arguments)

    def __call__(self, arguments: Sequence[Argument]) -> None:
        """Launch on the current device and stream; the first call compiles."""
        if self._run is None:
            self._first(arguments)
        else:
            self._run(*self._pick(arguments), *self._bound)

    def _first(self, arguments: Sequence[Argument]) -> None:
        tensors = self._pick(arguments)
        early = {"launch_pdl": True} if chain.overlaps(self.kernel, flat(tensors)[0].device) else {}
        compiled = self.kernel[self.grid](*tensors, *self.sizes.values(), **self.constants, **self.options, **early)
        if compiled is not None:  # None under the interpreter; the specialisation is the plan's key
            self._run = compiled[self.grid]
