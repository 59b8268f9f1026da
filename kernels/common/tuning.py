"""A small autotune on request: warps and a pass's channels per block, by Triton's own autotuner.

What is found serves all sizes of its bucket (powers of two) in this process; Triton keeps it on disk for the exact
sizes. A call tunes in `fastattn.warmup` alone.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import triton
from torch import Tensor

from .launch import Argument, Launch
from .tiles import power

active = False  # whether calls tune what they launch
_found: dict[tuple, triton.Config] = {}
_KEYS = ("B", "C", "H", "W", "WH", "WW", "D", "N", "M", "LENGTH", "PARTS", "HEADS")


@contextlib.contextmanager
def tuning() -> Iterator[None]:
    """Tune what is launched in the block, in any thread: autograd has its own."""
    global active
    before, active = active, True
    try:
        yield
    finally:
        active = before


def _bucket(launch: Launch) -> tuple:
    varied = {name for blocks in launch.alternatives for name in blocks}
    sizes = tuple(power(size) for name in _KEYS if isinstance(size := launch.sizes.get(name), int))
    constants = tuple((name, value) for name, value in launch.constants.items() if name not in varied)
    return launch.name, launch.context, sizes, constants


def apply(launch: Launch) -> Launch:
    """Configure a launch as was found best for its bucket, if anything was."""
    config = _found.get(_bucket(launch))
    if config is not None:
        launch.configure({**launch.constants, **config.kwargs}, config.num_warps)
    return launch


def tune(launch: Launch, arguments: Sequence[Argument], do_bench: Callable | None = None) -> None:
    """Measure a launch's alternatives on the tensors of one call, and configure it with the fastest.

    RuntimeError during the capture of a CUDA graph.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("kernels cannot be tuned while a CUDA graph is captured: call fastattn.warmup before")
    bucket = _bucket(launch)
    if bucket not in _found:
        others = {w for w in (launch.num_warps // 2, 2 * launch.num_warps) if 4 <= w <= 16}
        warps = {launch.num_warps, *others}
        # with all constants in the configurations, Triton's cache on disk tells formats and options apart
        single = {name: value for name, value in launch.constants.items() if type(value) is not tuple}
        tuples = {name: value for name, value in launch.constants.items() if name not in single}  # JSON has none
        blocks = [{**single, **block} for block in ({}, *launch.alternatives)]
        fixed = {"num_stages": launch.num_stages, "maxnreg": launch.registers}
        configs = [triton.Config(block, num_warps=w, **fixed) for block in blocks for w in sorted(warps)]
        options = {"do_bench": do_bench} if do_bench else {}
        keys = [*(name for name in _KEYS if name in launch.sizes), *tuples]
        tuner = triton.autotune(configs, key=keys, cache_results=True, **options)(launch.kernel)
        # some kernels work in place, on scratch
        named = zip(launch.tensors, launch.pick(arguments), strict=True)
        tensors = [t.clone() if name == "scratch" and isinstance(t, Tensor) else t for name, t in named]
        tuner[launch.grid_of](*tensors, *launch.sizes.values(), **tuples)
        _found[bucket] = tuner.best_config
    apply(launch)
