"""Counted traffic: how many bytes of which tensors the Triton kernels touch, without a GPU.

Under TRITON_INTERPRET=1, set before Triton is first imported,

    with count() as launches:
        module(x)

fills `launches` with one record for each launch. A program counts every byte once that its active lanes read,
and once that they write, however often they do; the programs are summed. An access outside of the launch's
tensors raises before it happens, and so do a misaligned one and a floating-point atomic.

    python -m benchmarks.traffic

prints that of SCSA, launch by launch, `--operation gather` or `--operation attention` that of CFSAM's kernels at
SSD300's levels, and `--operation lga`, `acp` or `cat` that of LGA, ACP or CAT, array by array, without the 1x1
convolutions of LGA and the products of matrices beside the kernels of the others, which are the library's own. The
interpreter takes seconds for each sample and stage of ResNet-50, and minutes for backward passes of LGA and CAT.
"""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import fastattn
from fastattn.bench.scene import outputs
from fastattn.bench.sizes import ACP_SIZES, LGA_SIZES, MEMORY_FORMATS, STAGES, name_of
from fastattn.report import Table, to_text

from . import interpreter
from .suites.cfsam import AttentionCase, PyramidCase, attend, attention_scene, gather_tokens, random_maps
from .suites.interaction import ACP_BATCH, ACP_LAYERS, CAT_BATCH, CAT_CONCEPTS, CAT_TOKENS, AcpCase, CatCase, make
from .suites.lga import CONTRACTIONS, LGA_BATCH, PAPER, LgaCase
from .suites.scsa import Case

BY_ARRAY = ("lga", "acp", "cat")  # what is printed array by array


class AccessError(RuntimeError):
    """What a kernel must not do to memory."""


@dataclass
class Record:
    """One launch: the bytes that its programs read and wrote, by tensor."""

    kernel: str
    programs: int = 0
    read: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    written: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def bytes(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())

    def arrays(self) -> dict[str, tuple[int, int]]:
        """Bytes read and written of each array; those that are numbered count as one."""
        found: dict[str, tuple[int, int]] = {}
        for kind, sizes in enumerate((self.read, self.written)):
            for name, size in sizes.items():
                name = re.sub(r"_\d+$", "", name)
                read, written = found.get(name, (0, 0))
                found[name] = (read, written + size) if kind else (read + size, written)
        return found


class Memory:
    """The tensors of one launch, and what the program that runs now has touched of them."""

    def __init__(self, record: Record, tensors: Mapping[str, Tensor]):
        spans = sorted((t.data_ptr(), t.data_ptr() + extent(t), name) for name, t in tensors.items() if t.numel())
        self.record = record
        self.names = [name for _, _, name in spans]
        self.starts = np.array([start for start, _, _ in spans], np.uint64)
        self.ends = np.array([end for _, end, _ in spans], np.uint64)
        # (tensor, read or written) -> size of an element -> addresses of each access
        self.touched: dict[tuple[int, str], dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))

    def touch(self, kind: str, pointers: Any, mask: Any) -> None:
        """Note an access by pointers and mask of the interpreter; raise where it should not be made."""
        if mask is None:
            addresses = pointers.data.ravel()
        else:
            addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool, copy=False)]
        if not addresses.size:
            return
        size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        if (addresses % size).any():
            raise AccessError(f"{self.record.kernel}: a misaligned {kind} of {size} bytes")
        owners = np.searchsorted(self.starts, addresses[[addresses.argmin(), addresses.argmax()]], side="right")
        if owners[0] == owners[1]:
            self.keep(kind, int(owners[0]) - 1, addresses, size)
        else:
            owners = np.searchsorted(self.starts, addresses, side="right")
            for owner in np.unique(owners):
                self.keep(kind, int(owner) - 1, addresses[owners == owner], size)

    def keep(self, kind: str, tensor: int, addresses: np.ndarray, size: np.uint64) -> None:
        beyond = int(addresses.max()) + int(size) - int(self.ends[tensor]) if tensor >= 0 else 1
        if beyond > 0:
            place = f"{beyond} bytes beyond {self.names[tensor]}" if tensor >= 0 else "before every tensor"
            raise AccessError(f"{self.record.kernel}: {kind} outside of the tensors, {place}")
        self.touched[tensor, kind][int(size)].append(addresses)

    def end_program(self) -> None:
        """Add to the record what the program touched, each byte once."""
        for (tensor, kind), by_size in self.touched.items():
            unit = min(by_size)
            units = [
                (np.concatenate(accesses)[:, None] + np.arange(0, size, unit, dtype=np.uint64)).ravel()
                for size, accesses in by_size.items()
            ]
            count = len(np.unique(np.concatenate(units))) * unit
            (self.record.read if kind == "read" else self.record.written)[self.names[tensor]] += count
        self.touched.clear()


def extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((length - 1) * stride for length, stride in steps)) * tensor.element_size()


def named(names: Iterable[str], arguments: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a launch with its name; those of a tuple are numbered."""
    for name, argument in zip(names, arguments, strict=True):
        if isinstance(argument, tuple):
            yield from ((f"{name}_{i}", tensor) for i, tensor in enumerate(argument))
        else:
            yield name, argument


class _Watch:
    """Stands between the interpreter and memory while `count` is active."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.memory: Memory | None = None

    def launch(self, call: Callable[..., None]) -> Callable[..., None]:
        from triton.runtime.errors import InterpreterError

        def launch(self_: Any, arguments: Sequence[Any]) -> None:
            record = Record(self_.name)
            self.memory = memory = Memory(record, dict(named(self_.tensors, self_.pick(arguments))))
            try:
                call(self_, arguments)
            except InterpreterError as error:
                raise cause(error) from None
            finally:
                self.memory = None
            memory.end_program()
            self.records.append(record)

        return launch

    def program(self, call: Callable[..., None]) -> Callable[..., None]:
        def set_grid_idx(builder: Any, *index: int) -> None:
            if self.memory:
                self.memory.end_program()
                self.memory.record.programs += 1
            call(builder, *index)

        return set_grid_idx

    def access(self, kinds: Sequence[str], mask_at: int | None, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap an access whose arguments begin with the pointers."""

        def access(builder: Any, pointers: Any, *rest: Any, **named: Any) -> Any:
            if self.memory:
                for kind in kinds:
                    self.memory.touch(kind, pointers, None if mask_at is None else rest[mask_at])
            return call(builder, pointers, *rest, **named)

        return access

    def atomic(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def atomic(builder: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            if self.memory:
                if value.dtype.scalar.is_floating():
                    raise AccessError(f"{self.memory.record.kernel}: a floating-point atomic, whose sums have no order")
                self.memory.touch("read", pointers, mask)
                self.memory.touch("write", pointers, mask)
            return call(builder, operation, pointers, value, mask, *rest)

        return atomic


def cause(error: BaseException) -> BaseException:
    """What went wrong in a kernel, below what the interpreter wraps around it in each function."""
    while error.__cause__ is not None and not isinstance(error, AccessError):
        error = error.__cause__
    return error


@contextmanager
def count() -> Iterator[list[Record]]:
    """Record the launches inside; RuntimeError unless Triton interprets."""
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError("counting traffic needs TRITON_INTERPRET=1, set before Triton is imported")
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    from fastattn.kernels.common.launch import Launch

    watch = _Watch()
    with (
        interpreter.quick(),
        patch.object(Launch, "__call__", watch.launch(Launch.__call__)),
        patch.object(Builder, "set_grid_idx", watch.program(Builder.set_grid_idx)),
        patch.object(Builder, "create_masked_load", watch.access(["read"], 0, Builder.create_masked_load)),
        patch.object(Builder, "create_masked_store", watch.access(["write"], 1, Builder.create_masked_store)),
        patch.object(Builder, "create_atomic_cas", watch.access(["read", "write"], None, Builder.create_atomic_cas)),
        patch.object(Builder, "create_atomic_rmw", watch.atomic(Builder.create_atomic_rmw)),
    ):
        yield watch.records


@dataclass(frozen=True)
class Traffic:
    """The launches of one pass, beside the size of x, which is all inputs together."""

    records: list[Record]
    bytes_of_x: int

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.records)

    @property
    def times_x(self) -> float:
        return self.bytes / self.bytes_of_x

    @property
    def launches(self) -> int:
        return len(self.records)

    def in_a_batch(self, samples: int, batch: int) -> float:
        """Times x where a batch stands for these samples: the parameters' gradients are written once for it."""
        once = sum(record.written.get("grad_params", 0) for record in self.records)
        return (self.bytes - once * (1 - samples / batch)) / self.bytes_of_x


def measure(
    forward: Callable[..., Any], inputs: Sequence[Tensor], parameters: Iterable[Tensor] = (), *, backward: bool = False
) -> dict[str, Traffic]:
    """Traffic of the forward pass, and of the backward pass if asked, on the triton backend."""
    inputs = [x.detach().requires_grad_(backward) for x in inputs]
    size = sum(x.numel() * x.element_size() for x in inputs)
    with fastattn.use_backend("triton"), torch.set_grad_enabled(backward), count() as records:
        outs = outputs(forward(*inputs))
    found = {"forward": Traffic(records, size)}
    if backward:
        generator = torch.Generator().manual_seed(0)
        grads = [torch.empty_like(out).normal_(generator=generator) for out in outs]
        with count() as records:
            torch.autograd.grad(outs, [*inputs, *parameters], grads)
        found["backward"] = Traffic(records, size)
    return found


@contextmanager
def planned_like(batch: int, samples: int) -> Iterator[None]:
    """Plan calls of few samples (or heads) like those of a batch, on a GPU that is smaller by as much, and so much
    faster."""
    from fastattn.kernels.acp import conv_pool, pyramid_project, pyramid_project_backward
    from fastattn.kernels.cat import call as cat
    from fastattn.kernels.cfsam import partition_attention
    from fastattn.kernels.common import depthwise, launch
    from fastattn.kernels.lga import gram_attention, scale_mix
    from fastattn.kernels.scsa import call as scsa
    from fastattn.kernels.scsa import plan

    fewer = -(-launch.processors(torch.device("cpu")) * samples // batch)
    passes = depthwise, scale_mix, conv_pool
    projections = pyramid_project, pyramid_project_backward
    plans = (
        *(scsa.plan, partition_attention.plan, gram_attention.plan, cat.plan),
        *(pyramid_project.project_plan, pyramid_project_backward.sums_plan),
        *(function for module in passes for function in (module.forward_plan, module.backward_plan)),
    )
    for cached in plans:
        cached.cache_clear()
    with ExitStack() as patches:
        for module in (plan, partition_attention, gram_attention, cat, *projections, *passes):
            patches.enter_context(patch.object(module, "processors", lambda device: fewer))
        yield
    for cached in plans:
        cached.cache_clear()


def as_extra_info(found: Mapping[str, Traffic]) -> dict[str, float]:
    """The same as flat numbers, for a benchmark's extra_info."""
    return {
        f"{work}_{name}": value
        for work, traffic in found.items()
        for name, value in (
            ("traffic_bytes", traffic.bytes),
            ("traffic_over_x", traffic.times_x),
            ("launches", traffic.launches),
        )
    }


def table(case: Any, found: Mapping[str, Traffic], *, arrays: bool = False) -> Table:
    """A row for each launch, or each of its arrays, and one for each pass, in times x."""
    rows = []
    for work, traffic in found.items():
        for record in traffic.records:
            start = work, record.kernel.removesuffix("_kernel"), str(record.programs)
            parts = record.arrays()
            if not arrays:
                parts = {"": (sum(record.read.values()), sum(record.written.values()))}
            for name, (read, written) in parts.items():
                shares = [f"{size / traffic.bytes_of_x:.3f}" for size in (read, written, read + written)]
                rows.append((*start, *[name] * arrays, *shares))
        rows.append((work, "all", "-", *["-"] * arrays, "-", "-", f"{traffic.times_x:.3f}"))
    shape = "(" + ", ".join(map(str, case.shape)) + ")"
    columns = ("pass", "kernel", "programs", *["array"] * arrays, "read / x", "written / x", "both / x")
    return Table(f"{name_of(case.dtype)}, {case.memory_format}, {shape}", columns, rows)


def scsa(case: Case, like_batch: int) -> dict[str, Traffic]:
    x = torch.randn(case.shape).to(case.dtype).contiguous(memory_format=MEMORY_FORMATS[case.memory_format])
    module = fastattn.SCSA(case.shape[1]).to(case.dtype)
    with planned_like(like_batch, case.shape[0]):
        return measure(module, [x], module.parameters(), backward=True)


def gather(case: PyramidCase) -> dict[str, Traffic]:
    """Of the first gather of a CFSAM: maps to tokens, which are kept, and normalised ones."""
    norm = nn.LayerNorm(case.dim, dtype=case.dtype)
    forward = partial(gather_tokens, norm=norm)
    return measure(forward, random_maps(case, [case.dim] * len(case.levels)), norm.parameters(), backward=True)


def attention(case: AttentionCase, like_batch: int) -> dict[str, Traffic]:
    """Of one head, each of which moves as much."""
    case = replace(case, heads=1)
    inputs = list(attention_scene(case).inputs.values())
    with planned_like(like_batch * AttentionCase.heads, case.batch):
        return measure(partial(attend, case=case), inputs, backward=True)


def lga(case: LgaCase, like_batch: int, *, backward: bool = True) -> dict[str, Traffic]:
    """Of the module's own kernels; the gradients that come in are random."""
    module = fastattn.LocalGlobalAttention(case.dim, case.heads, contraction=case.contraction).to(case.dtype)
    x = torch.randn(case.shape).to(case.dtype).contiguous(memory_format=MEMORY_FORMATS[case.memory_format])
    with planned_like(like_batch, case.batch):
        return measure(module, [x], module.parameters(), backward=backward)


def interaction(case: AcpCase | CatCase, like_batch: int, *, backward: bool = True) -> dict[str, Traffic]:
    """Of ACP's or CAT's own kernels; the gradients that come in are random."""
    module, x = make(case)
    x = x.to(case.dtype).contiguous(memory_format=MEMORY_FORMATS[case.memory_format])
    with planned_like(like_batch, case.batch):
        return measure(module.to(case.dtype), [x], module.parameters(), backward=backward)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description="Counted traffic.")
    stages = {"x".join(map(str, stage)): stage for stage in STAGES}
    dtypes = {name_of(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    maps = {f"{dim}x{side}x{side}": (dim, heads, side) for dim, heads, side in LGA_SIZES}
    acp_maps = {f"{dim}x{side}x{side}": (dim, side) for dim, side in ACP_SIZES}
    tokens = {f"{count}x{dim}": (count, dim) for count, dim in CAT_TOKENS}
    formats = list(MEMORY_FORMATS)
    operations = "scsa", "gather", "attention", *BY_ARRAY
    parser.add_argument("--operation", choices=operations, default="scsa", help="(default: scsa)")
    parser.add_argument("--batch", type=int, default=1, help="samples (default: 1)")
    parser.add_argument("--like-batch", type=int, help="plan the launches like those of so many samples")
    parser.add_argument("--shape", nargs="+", choices=stages, default=list(stages), help="of one sample: scsa")
    parser.add_argument("--map", nargs="+", choices=maps, default=["128x20x20"], help="of one sample: lga")
    parser.add_argument("--contraction", nargs="+", choices=CONTRACTIONS, default=[PAPER], help="of lga")
    parser.add_argument("--acp-map", nargs="+", choices=acp_maps, default=list(acp_maps), help="of one sample: acp")
    parser.add_argument("--layers", type=int, default=ACP_LAYERS, help=f"of acp (default: {ACP_LAYERS})")
    parser.add_argument("--tokens", nargs="+", choices=tokens, default=["197x192"], help="of one sample: cat")
    parser.add_argument("--concepts", nargs="+", type=int, default=[CAT_CONCEPTS[0]], help="of cat")
    parser.add_argument("--forward", action="store_true", help=f"leave the backward pass out: {', '.join(BY_ARRAY)}")
    parser.add_argument("--format", nargs="+", choices=formats, default=formats, help="of maps: scsa, gather, lga, acp")
    parser.add_argument("--dtype", choices=dtypes, default="float32")
    parser.add_argument("--json", action="store_true", help="print numbers for a benchmark's extra_info")
    options = parser.parse_args(arguments)
    options.shape = [stages[name] for name in options.shape]
    options.map = [maps[name] for name in options.map]
    options.acp_map = [acp_maps[name] for name in options.acp_map]
    options.tokens = [tokens[name] for name in options.tokens]
    options.dtype = dtypes[options.dtype]
    return options


def counted(options: argparse.Namespace) -> Iterator[tuple[Any, dict[str, Traffic]]]:
    """The cases that are asked for, each with its traffic."""
    if options.operation == "attention":
        case = AttentionCase(options.batch, dtype=options.dtype)
        yield case, attention(case, options.like_batch or options.batch)
    elif options.operation == "gather":
        for layout in options.format:
            pyramid = PyramidCase(options.batch, layout, dtype=options.dtype)
            yield pyramid, gather(pyramid)
    elif options.operation == "lga":
        for (dim, heads, side), contraction, layout in product(options.map, options.contraction, options.format):
            lga_case = LgaCase(options.batch, dim, heads, side, contraction, memory_format=layout, dtype=options.dtype)
            yield lga_case, lga(lga_case, options.like_batch or LGA_BATCH, backward=not options.forward)
    elif options.operation in ("acp", "cat"):
        for asked in interaction_cases(options):
            like_batch = options.like_batch or (ACP_BATCH if isinstance(asked, AcpCase) else CAT_BATCH)
            yield asked, interaction(asked, like_batch, backward=not options.forward)
    else:
        for stage, layout in product(options.shape, options.format):
            scsa_case = Case((options.batch, *stage), options.dtype, layout)
            yield scsa_case, scsa(scsa_case, options.like_batch or options.batch)


def interaction_cases(options: argparse.Namespace) -> Iterator[AcpCase | CatCase]:
    if options.operation == "acp":
        for (dim, side), layout in product(options.acp_map, options.format):
            yield AcpCase(options.batch, dim, side, options.layers, memory_format=layout, dtype=options.dtype)
    else:
        for (tokens, dim), concepts in product(options.tokens, options.concepts):
            yield CatCase(options.batch, tokens, concepts, dim, dtype=options.dtype)


def main(arguments: Sequence[str]) -> int:
    """Print a table for each shape and format, or all of them as JSON."""
    os.environ["TRITON_INTERPRET"] = "1"  # Triton is imported with the first kernel
    options = parse(arguments)
    results = []
    for case, found in counted(options):
        facts = {name: value for name, value in case.facts().items() if name != "work"}
        numbers = as_extra_info(found)
        if options.like_batch:
            parts = found.items()
            numbers |= {f"{work}_traffic_over_x": t.in_a_batch(options.batch, options.like_batch) for work, t in parts}
        results.append({"operation": options.operation, **facts, "bytes_of_x": found["forward"].bytes_of_x, **numbers})
        if not options.json:
            print(to_text(table(case, found, arrays=options.operation in BY_ARRAY)), end="\n\n", flush=True)
    if options.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
