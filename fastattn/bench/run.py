"""One row of a table measured: its rivals checked, then timed in turns, then described as records of a result."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.backends import BACKENDS, Call, unsupported_reasons
from ..core.flops import multiply_adds
from .contest import COMPILE, COMPILED, COPY, EAGER, PLAIN, Contest, Effort, fast_backends, is_compiled, reason
from .devices import Cpu, Work, device
from .interleave import WARM_CALLS, Rival
from .measures import bytes_moved_at_least
from .networks import CHECKED, answers, first, work_on
from .scene import setting as grad_and_backend
from .sizes import FORWARD, name_of
from .tables import Row, Setting, Subject
from .telemetry import watch

STEADY_SECONDS = 1.0  # that a GPU works at one rival for its energy: the driver's meter is slow
AMP = torch.bfloat16  # what --amp casts to
ENERGY = ("power_w", "energy_per_image_j")
FAST = {"cpu": "native", "cuda": "triton"}  # who should serve this package's attentions

Record = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How rows are timed: the setting of the tensors, rounds, whether torch.compile takes part, what is done, and
    whether under autocast."""

    setting: Setting
    repeats: int = 10
    compiled: bool = True
    work: str = FORWARD
    amp: bool = False

    @contextmanager
    def context(self, backend: str) -> Iterator[None]:
        """What surrounds a round: grad mode, backend, autocast."""
        autocast = torch.autocast(self.setting.device, AMP, enabled=self.amp)
        with grad_and_backend(self.work, backend), autocast:
            yield

    @property
    def facts(self) -> dict[str, Any]:
        """What a result file says about it."""
        setting = self.setting
        found = {
            "batches": list(setting.batches),
            "repeats": self.repeats,
            "warm_up": WARM_CALLS,
            "dtype": name_of(setting.dtype),
            "format": setting.format,
            "work": self.work,
            "compiled": "all" if self.compiled else "none",
        }
        if self.amp:
            found["amp"] = name_of(AMP)
        if setting.device == "cuda" and setting.dtype == torch.float32:
            found["tf32"] = tf32()
        return found


def tf32() -> str:
    """Where float32 is multiplied in TF32."""
    parts = {"convolutions": torch.backends.cudnn.allow_tf32, "matrix products": torch.backends.cuda.matmul.allow_tf32}
    return " and ".join(name for name, allowed in parts.items() if allowed) or "nothing"


def implementations(row: Row, protocol: Protocol) -> list[str]:
    """Who computes a row: eager, torch.compile, the fast backend of the device, and of a network both of these."""
    fast = fast_backends(row.operation, protocol.setting.device)[:1] if row.fast else []
    both = [name + COMPILED for name in fast] if protocol.compiled and row.model else []
    return [EAGER, *([COMPILE] if protocol.compiled else []), *fast, *both]


def wanted(row: Row, protocol: Protocol) -> list[Record]:
    """What tells the records of a row apart, one for each implementation."""
    return [identity(row, protocol) | {"rival": name} for name in implementations(row, protocol)]


def without_fast(row: Row, protocol: Protocol) -> Record | None:
    """What a record says where no fast backend serves a row that one should."""
    device_type = protocol.setting.device
    if not row.fast or row.operation == "gates" or fast_backends(row.operation, device_type):
        return None
    name = FAST[device_type]
    reasons = unsupported_reasons(name, Call(row.operation, device_type))
    return {"rival": name, "failed": "; ".join(reasons)}


def measure(row: Row, protocol: Protocol) -> list[Record]:
    """The records of a row, one for each implementation; one that fails says why, and where the row itself cannot be
    made all of them do."""
    names = implementations(row, protocol)
    facts = identity(row, protocol)
    subject: Subject | None = None
    try:
        subject = row.make(protocol.setting)
        facts |= describe(subject, protocol.work, alone=row.model is None)
        found = timed(subject, names, protocol, facts)
    except Exception as error:  # a missing package, a shape that does not fit, memory
        found = [facts | {"rival": name, "failed": reason(error)} for name in names]
    finally:
        subject = None  # before the device is asked to give back what it held
        torch._dynamo.reset()
        device_of(protocol).release()
    return found + [facts | missing for missing in [without_fast(row, protocol)] if missing]


def timed(subject: Subject, names: list[str], protocol: Protocol, facts: Record) -> list[Record]:
    """The records of a subject's rivals, timed in turns."""
    contest = admitted(subject, names, protocol, alone="bytes_moved_at_least" in facts)
    hardware, failed = contest.device, contest.failed
    with watch(hardware.type) as seen:
        if failed.keys() != set(names):
            contest.run()
    state = seen.facts()
    found = []
    for name in names:
        if name in failed:
            found.append(facts | {"rival": name, "failed": failed[name]})
            continue
        energy = {} if hardware.type == "cpu" else steady(contest.rivals[name], hardware, facts["shape"][0])
        measured = figures(name, contest, facts) | peak_memory(subject, contest, name, facts)
        found.append(facts | measured | {"rival": name, "telemetry": state | energy})
    return found


def figures(name: str, contest: Contest, facts: Record) -> Record:
    """Times, images per second by the median, ratios over the others of the same rounds."""
    seconds = contest.timings[name].median
    found: Record = contest.times(name) | {"images_per_s": facts["shape"][0] / seconds}
    if "bytes_moved_at_least" in facts:
        found["gb_per_s"] = facts["bytes_moved_at_least"] / seconds / 1e9
    if COPY in contest.timings:
        found["copy_gb_per_s"] = facts["bytes_moved_at_least"] / contest.timings[COPY].median / 1e9
    return found


def peak_memory(subject: Subject, contest: Contest, name: str, facts: Record) -> Record:
    """Of a network the most bytes that it holds at work, besides its weights and the images."""
    if facts["model"] is None:
        return {}
    rival = contest.rivals[name]
    subject.module.zero_grad()
    with rival.context():
        return {"peak_memory_bytes": contest.device.peak_bytes(rival.call)}


def admitted(subject: Subject, names: list[str], protocol: Protocol, *, alone: bool) -> Contest:
    """The contest of those who compute what the reference does; beside them the network without attention, or a plain
    copy of the inputs of a module alone."""
    contest = Contest(device_of(protocol), Effort(rounds=protocol.repeats, budget_seconds=math.inf), launches=(None,))
    training = protocol.work != FORWARD
    learnt = tensors(subject.inputs) if alone and training else []
    for x in learnt:
        x.requires_grad_()

    def work(module: nn.Module, name: str) -> Work:
        module.train(training)
        called = torch.compile(module, dynamic=False) if is_compiled(name) else module
        return work_on(protocol.work, called, subject.inputs, [*learnt, *module.parameters()])

    truth, eager = truths(subject, protocol)
    for name in names:
        call, backend = work(subject.module, name), name.removesuffix(COMPILED)
        context = partial(protocol.context, backend if backend in BACKENDS else "reference")
        contest.enter(name, call, partial(first, call), context, truth, eager)
    if subject.plain is not None:
        for name in (PLAIN, *([PLAIN + COMPILED] if protocol.compiled else [])):
            contest.beside(name, work(subject.plain, name), partial(protocol.context, "reference"))
    if alone:
        copied = [x.detach() for x in tensors(subject.inputs)]
        contest.beside(COPY, partial(torch._foreach_copy_, [torch.empty_like(x) for x in copied], copied))
    return contest


def truths(subject: Subject, protocol: Protocol) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the reference computes for the first images, in float64 and in the run's dtype; in training, where
    normalisations look at all images, from all of them. Gradients are the tests' to check."""
    training = protocol.work != FORWARD
    seen = nested(lambda x: x.detach()[: None if training else CHECKED].clone(), subject.inputs)
    exact = deepcopy(subject.module).double().train(training)
    with grad_and_backend(FORWARD, "reference"):
        truth = first(partial(answers, exact, *nested(lambda x: x.double(), seen)))
    with protocol.context("reference"), torch.no_grad():
        return truth, first(partial(answers, subject.module.train(training), *seen))


def steady(rival: Rival, hardware: Cpu, batch: int) -> Record:
    """A GPU's power, and its energy for each image, while one rival works alone behind the rounds."""
    assert hardware.stopwatch is not None
    try:
        with rival.context():
            seconds = max(hardware.stopwatch(rival.call, 1), 1e-6)
            calls = max(1, math.ceil(STEADY_SECONDS / seconds))
            with watch(hardware.type) as seen:
                hardware.stopwatch(rival.call, calls)
    except Exception as error:  # the times stand
        return {"unavailable": f"energy: {reason(error)}"}
    return {name: value for name, value in seen.facts(images=calls * batch).items() if name in ENERGY}


def identity(row: Row, protocol: Protocol) -> Record:
    """What tells a record from the others of a result, its rival left out."""
    dtype = name_of(protocol.setting.dtype)
    where = {"suite": "throughput", "operation": row.attention, "dtype": dtype, "format": protocol.setting.format}
    return where | row.identity | {"work": protocol.work} | ({"note": row.note} if row.note else {})


def describe(subject: Subject, work: str, *, alone: bool) -> Record:
    """Parameters, multiply-adds of one image, and of a module alone the bytes that have to move."""
    batch = tensors(subject.inputs)[0].shape[0]
    found: Record = {
        "parameters": sum(p.numel() for p in subject.module.parameters()),
        "multiply_adds": None,
    }
    with suppress(Exception):  # an operator of the caller's own that cannot be counted
        found["multiply_adds"] = multiply_adds(subject.module, *subject.inputs) / batch
    if alone:  # every module's output has its input's size
        maps = tensors(subject.inputs)
        found["bytes_moved_at_least"] = bytes_moved_at_least(maps, maps, work)
    return found


def tensors(inputs: Any) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else [x for part in inputs for x in tensors(part)]


def nested(change: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """The same inputs, each tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    return type(inputs)(nested(change, part) for part in inputs)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch, and with it fastattn, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(protocol: Protocol) -> Cpu:
    return device() if protocol.setting.device == "cuda" else Cpu()
