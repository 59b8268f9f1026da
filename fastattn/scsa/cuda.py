"""SCSA and its parts by CUDA C++: what is launched, and how a sample is shared out. The kernels are in csrc/cuda/scsa.

A team of blocks takes a sample, each a run of its channels, which it holds in shared memory where that fits; teams walk
over the samples. From sm_90 on a team is a cluster; before, and where a cluster's shared memory is too small for a map,
its blocks meet at a counter in global memory.
"""

import functools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import parameters
from ..core.cuda import Device, Kernel, device_facts

_TYPES = {torch.float32: "float", torch.bfloat16: "Bf16", torch.float16: "F16"}
MOST_ELEMENTS = 2**31 - 1  # of a sample: the kernels' indices in it are int
MOST_BLOCKS = {True: 8, False: 16}  # of a team: what every cluster may have, and usual ones without
FIELDS = {False: 8, True: 13}  # of a board, besides the pooled map: in forward, in backward
_STATISTICS = 20  # floats of a sample that are no vectors
# a processor's share, by which plans are compared: bytes of global memory and instructions of threads in a nanosecond
BANDWIDTH, RATE = 25.0, 200.0
LATENCY = 6_000.0  # nanoseconds that a sample takes however small it is
RESERVED = 1024  # bytes of shared memory that a block takes besides its own


@dataclass(frozen=True)
class Signature:
    """All that a plan depends on, besides the device."""

    spatial: bool
    channel: bool
    shape: tuple[int, ...]
    kernels: tuple[int, ...]
    qkv_bias: bool
    options: tuple
    x_dtype: torch.dtype
    out_dtype: torch.dtype
    param_dtype: torch.dtype
    channels_last: bool
    aligned: bool  # every map begins at a multiple of 16 bytes

    @property
    def channel_options(self) -> tuple[int, int, str]:
        """Heads, window and mode."""
        return self.options[:3] if self.channel else (1, -1, "avg_pool")

    @property
    def windows(self) -> tuple[int, int, int, int]:
        """Height and width of a window, and how many windows there are along each axis."""
        _, _, height, width = self.shape
        _, window, _ = self.channel_options
        if not self.channel:
            return height, width, 0, 0
        return (height, width, 1, 1) if window == -1 else (window, window, height // window, width // window)

    @property
    def max_pool(self) -> bool:
        """Whether a window's maximum is taken."""
        _, window, mode = self.channel_options
        return mode == "max_pool" and window != -1

    @property
    def wide(self) -> bool:
        """Whether maps are read and written 16 bytes at a time."""
        return not self.channels_last or (self.aligned and self.shape[1] % self.pack == 0)

    @property
    def pack(self) -> int:
        """Elements in 16 bytes of the narrower map."""
        return 16 // min(self.x_dtype.itemsize, self.out_dtype.itemsize)

    @property
    def pixels(self) -> int:
        """Of the pooled map."""
        return self.windows[2] * self.windows[3]

    @property
    def saved_size(self) -> int:
        """Floats of a sample that forward saves."""
        return saved_size(self.spatial, self.channel, self.shape, self.options)

    @property
    def gradients(self) -> int:
        """The number of all parameters."""
        channels = self.shape[1]
        group = channels // 4
        axes = group * (sum(self.kernels) + 4) + 4 * channels if self.spatial else 0
        return axes + channels * (5 * self.channel + 3 * self.qkv_bias)


@dataclass(frozen=True, eq=False)
class Plan:
    """How one of the two kernels shares out a sample, and what it is compiled and launched with; compared by identity,
    as a signature has one."""

    kernel: Kernel
    blocks: int  # of a team
    per_block: int  # channels
    rows: int  # of the attention that backward forms at a time
    held: bool
    cluster: bool
    threads: int
    shared_bytes: int
    board: int  # floats of a block

    @property
    def in_shared(self) -> bool:
        """Whether the boards are in shared memory."""
        return self.cluster or self.blocks == 1


def _pieces(known: Signature, per_block: int, rows: int, held: bool, backward: bool) -> Iterator[tuple[int, int]]:
    """Yield the pieces of shared memory that a block takes besides its board: elements and bytes of one."""
    _, channels, height, width = known.shape
    heads, _, _ = known.channel_options
    maps = (known.x_dtype.itemsize, known.out_dtype.itemsize) if backward else (known.x_dtype.itemsize,)
    for item in maps:
        yield (per_block * height * width + 16 // item) * held, item
    vectors = 4 if backward else 2
    for length in (height, width):
        yield from [(per_block * length, 4)] * (vectors * known.spatial)
    yield from [(16, 4), (3, 4), (per_block, 4)]
    yield from [(9 * channels * known.channel, 4)] if backward else [(channels * known.channel, 4)] * 3
    if backward:
        yield from [(16, 4), (2, 4)]
        yield from [(per_block * known.pixels, 4)] * (3 if known.max_pool else 2)
        yield from [(rows * (channels // heads) * known.channel, 4)] * 3
        yield from [(per_block, 4), (height, 4), (width, 4)]


def _candidates(known: Signature, facts: Device, backward: bool) -> list[tuple[float, Plan]]:
    """Return the plans that fit, each with its predicted time in nanoseconds; if none does, those of larger teams, and
    at last of blocks that take fewer channels than 16 bytes hold."""
    clusters, larger = facts.capability >= 90, range(2, facts.processors + 1)
    usual = _plans(known, facts, backward, range(1, MOST_BLOCKS[clusters] + 1), clusters)
    narrow = replace(known, aligned=False)
    return [*usual] or [*_plans(known, facts, backward, larger)] or [*_plans(narrow, facts, backward, larger)]


def _plans(
    known: Signature, facts: Device, backward: bool, sizes: Iterable[int], clusters: bool = False
) -> Iterator[tuple[float, Plan]]:
    """Yield the plans for teams of these sizes that fit, each with its predicted time in nanoseconds."""
    batch, channels, height, width = known.shape
    heads, _, _ = known.channel_options
    size = channels // heads
    unit = known.pack if known.channels_last and known.wide else 1
    if channels * height * width > MOST_ELEMENTS:
        return
    maps = 3 if backward else 2
    work = (60 if backward else 25) * channels * height * width
    work += (3 if backward else 1) * channels * size * (30 + 8 * known.pixels) * known.channel
    for blocks in sizes:
        per_block = -(-channels // (blocks * unit)) * unit
        if -(-channels // per_block) != blocks:
            continue
        rows = max(1, min(per_block, 16384 // (12 * size)))
        board = (FIELDS[backward] + known.pixels) * per_block
        cluster = clusters and blocks > 1
        for held in (True, False):
            pieces = [*_pieces(known, per_block, rows, held, backward)]
            pieces += [(board, 4)] * (cluster or blocks == 1)
            shared = sum(-(-count * item // 16) * 16 for count, item in pieces)
            if shared > facts.shared_bytes:
                continue
            resident = min(2, (facts.shared_bytes + RESERVED) // (shared + RESERVED))
            teams = facts.processors * resident // blocks
            if not teams:  # of a small GPU, or a slice of one
                continue
            threads = 512 if resident == 1 else 256
            reads = maps if held else 2 * maps
            memory = reads * channels * height * width * known.x_dtype.itemsize / (BANDWIDTH * blocks)
            compute = work / (RATE * blocks)
            together = max(resident * memory, resident * compute, LATENCY + memory + compute)
            kernel = _kernel(known, held, cluster, threads, backward)
            plan = Plan(kernel, blocks, per_block, rows, held, cluster, threads, shared, board)
            yield -(-batch // teams) * together, plan


@functools.lru_cache(maxsize=2048)
def _variant(ready: Plan, flags: tuple[tuple[str, bool], ...], name: str = "") -> Kernel:
    """Return a plan's kernel, or another of its source, with these definitions too."""
    kernel = ready.kernel
    return Kernel(kernel.source, name or kernel.name, kernel.definitions + _defined(flags))


def _defined(flags: Iterable[tuple[str, bool]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(int(value))) for name, value in flags)


def _kernel(known: Signature, held: bool, cluster: bool, threads: int, backward: bool) -> Kernel:
    """Return the kernel with its definitions, whatever forward saves and backward is asked for."""
    flags = {
        "NHWC": known.channels_last,
        "SPATIAL": known.spatial,
        "CHANNEL": known.channel,
        "MAX": known.max_pool,
        "SOFTMAX": known.options[-1] == "softmax",
        "BIAS": known.qkv_bias,
        "HELD": held,
        "WIDE": known.wide,
        "CLUSTER": cluster,
    }
    types = {"X_TYPE": known.x_dtype, "PARAM_TYPE": known.param_dtype, "OUT_TYPE": known.out_dtype}
    definitions = [(name, _TYPES[dtype]) for name, dtype in types.items()]
    definitions += _defined(flags.items())
    definitions += [("THREADS", str(threads)), ("BLOCKS", str(512 // threads))]
    name = "backward" if backward else "forward"
    return Kernel(f"scsa/{name}.cu", f"scsa_{name}", tuple(definitions))


@functools.lru_cache(maxsize=512)
def plan(known: Signature, facts: Device, backward: bool = False) -> Plan:
    """Return the plan predicted to be the fastest, of those that hold the maps if there are any; RuntimeError."""
    found = _candidates(known, facts, backward)
    if not found:
        raise RuntimeError(_too_large(known, facts))
    return min(found, key=lambda each: (not each[1].held, each[0]))[1]


def _too_large(known: Signature, facts: Device) -> str:
    """Return why no plan serves a map."""
    _, channels, height, width = known.shape
    if channels * height * width > MOST_ELEMENTS:
        return f"a ({channels}, {height}, {width}) map has more than {MOST_ELEMENTS} elements"
    most = facts.processors
    return f"the vectors of a ({channels}, {height}, {width}) map do not fit the shared memory of {most} blocks"


def saved_size(spatial: bool, channel: bool, shape: Sequence[int], options: tuple) -> int:
    """Return how many floats per sample forward saves for backward."""
    _, channels, height, width = shape
    if not channel:
        return _STATISTICS
    _, window, mode, _ = options
    pixels = 1 if window == -1 else (height // window) * (width // window)
    return _STATISTICS + channels * (6 + pixels * (2 if mode == "max_pool" and window != -1 else 1))


def _prepare(operation, x: Tensor, params: Sequence[Tensor], options: tuple, *maps: Tensor, backward: bool):
    """Return what a call is, the plan for it, and its parameters, contiguous and of one dtype."""
    dtype, params, numels = parameters.prepare(x, params)
    parameters.check_memory(x, *params)
    kernels, qkv_bias = parameters.sizes(operation.spatial, operation.channel, x.shape[1], numels)
    aligned = not any(t.data_ptr() & 15 for t in (x, *maps))
    known = Signature(
        operation.spatial, operation.channel, tuple(x.shape), kernels, qkv_bias, options,
        x.dtype, maps[0].dtype, dtype, not x.is_contiguous(), aligned,
    )  # fmt: skip
    return known, plan(known, device_facts(x.device), backward), params


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def _by_role(known: Signature, params: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the parameters in the order of the kernels' struct, with None for those that there are not."""
    spatial: list[Tensor | None] = [None] * 12
    if known.spatial:
        spatial[:8], norms = params[:8], params[8:12]
        spatial[8:] = norms[0], norms[2], norms[1], norms[3]  # weights by axis, then biases
        params = params[12:]
    return [*spatial, *params, *[None] * (8 - len(params))]


def _launch(known: Signature, ready: Plan, kernel: Kernel, tensors: Sequence[Tensor | None], params) -> None:
    """Launch as many teams as are resident; `tensors` are x, grad_out, out, grad_x, saved and gradients."""
    x = tensors[0]
    assert x is not None
    if not x.numel():
        return
    cluster = ready.blocks if ready.cluster else 1
    batch = known.shape[0]
    teams = min(batch, _teams(kernel, x.device, ready))
    boards = arrivals = None
    if not ready.in_shared:
        boards = x.new_empty(teams * ready.blocks * ready.board, dtype=torch.float32)
        arrivals = x.new_zeros(teams, dtype=torch.int32)
    window_h, window_w, pooled_h, pooled_w = known.windows
    heads, _, _ = known.channel_options
    lanes = 1
    while lanes < 32 and 64 * lanes < window_h * window_w and lanes < window_h:
        lanes *= 2
    arguments = struct.pack(
        "28Q19i4x",
        *_addresses([*tensors, boards, arrivals, *_by_role(known, params)]),
        *known.shape, window_h, window_w, pooled_h, pooled_w, heads, *known.kernels,
        ready.per_block, ready.blocks, lanes, ready.rows, known.saved_size, known.gradients,
    )  # fmt: skip
    kernel.launch(
        x.device,
        teams * ready.blocks,
        ready.threads,
        cluster,
        ready.shared_bytes,
        arguments,
        cooperative=not ready.in_shared,
    )


@functools.lru_cache(maxsize=512)
def _teams(kernel: Kernel, device: torch.device, ready: Plan) -> int:
    """Return how many teams a device holds at once."""
    cluster = ready.blocks if ready.cluster else 1
    resident = kernel.occupancy(device, ready.threads, ready.shared_bytes, cluster)
    teams = resident if ready.cluster else resident // ready.blocks
    if not teams:
        raise RuntimeError(f"no team of {ready.blocks} blocks fits {device} at once")
    return teams


def forward(
    operation, x: Tensor, params: Sequence[Tensor], options: tuple, out_dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    """Run the forward of an operation on a dense tensor x (B, C, H, W); return (out, saved)."""
    out = torch.empty_like(x, dtype=out_dtype)
    known, ready, params = _prepare(operation, x, params, options, out, backward=False)
    if save:
        plan(known, device_facts(x.device), True)  # what backward could not take is refused here
    saved = x.new_empty((x.shape[0], known.saved_size) if save else (0,), dtype=torch.float32)
    _launch(known, ready, _variant(ready, (("SAVE", save),)), (x, None, out, None, saved, None), params)
    return out, saved


def backward(
    operation, grad_out: Tensor, x: Tensor, saved: Tensor, params: Sequence[Tensor], options: tuple,
    need_x: bool, need_params: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the backward of an operation; return (grad_x, all parameters' gradients), empty where not needed."""
    known, ready, params = _prepare(operation, x, params, options, grad_out, backward=True)
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    sums = params[0].new_empty(known.gradients if need_params else 0)
    gradients = x.new_empty((x.shape[0], sums.numel()), dtype=torch.float32)
    flags = ("SAVE", False), ("NEED_X", need_x), ("NEED_PARAMS", need_params)
    _launch(known, ready, _variant(ready, flags), (x, grad_out, None, grad_x, saved, gradients), params)
    if need_params:
        _sum_batch(_variant(ready, flags, "scsa_batch_sum"), gradients, sums)
    return grad_x, sums


def _sum_batch(kernel: Kernel, gradients: Tensor, sums: Tensor) -> None:
    """Sum the samples' gradients."""
    batch, size = gradients.shape
    arguments = struct.pack("2Q2i", *_addresses((gradients, sums)), batch, size)
    kernel.launch(gradients.device, -(-size // 32), 256, 1, 1024, arguments, cooperative=False)
