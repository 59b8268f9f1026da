"""One row of a table measured: its rivals checked, then timed in turns, then described as records of a result."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.backends import BACKENDS, Call, unsupported_reasons
from ..core.flops import multiply_adds
from .contest import COMPILE, COPY, EAGER, PLAIN, Contest, Effort, fast_backends, reason
from .devices import Cpu, device
from .interleave import WARM_CALLS, Rival
from .networks import CHECKED, answers, first, inference
from .sizes import FORWARD as WORK
from .sizes import name_of
from .tables import Row, Setting, Subject
from .telemetry import watch

STEADY_SECONDS = 1.0  # that a GPU works at one rival for its energy: the driver's meter is slow
ENERGY = ("power_w", "energy_per_image_j")
FAST = {"cpu": "native", "cuda": "triton"}  # who should serve this package's attentions

Record = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How rows are timed: the setting of the tensors, rounds, and whether torch.compile takes part."""

    setting: Setting
    repeats: int = 10
    compiled: bool = True

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
            "work": WORK,
            "compiled": "all" if self.compiled else "none",
        }
        if setting.device == "cuda" and setting.dtype == torch.float32:
            found["tf32"] = tf32()
        return found


def tf32() -> str:
    """Where float32 is multiplied in TF32."""
    parts = {"convolutions": torch.backends.cudnn.allow_tf32, "matrix products": torch.backends.cuda.matmul.allow_tf32}
    return " and ".join(name for name, allowed in parts.items() if allowed) or "nothing"


def implementations(row: Row, protocol: Protocol) -> list[str]:
    """Who computes a row: eager, torch.compile, and the fast backend of the device."""
    fast = fast_backends(row.attention, protocol.setting.device)[:1] if row.fast else []
    return [EAGER, *([COMPILE] if protocol.compiled else []), *fast]


def wanted(row: Row, protocol: Protocol) -> list[Record]:
    """What tells the records of a row apart, one for each implementation."""
    return [identity(row, protocol) | {"rival": name} for name in implementations(row, protocol)]


def without_fast(row: Row, protocol: Protocol) -> Record | None:
    """What a record says where no fast backend serves a row that one should."""
    device_type = protocol.setting.device
    if not row.fast or fast_backends(row.attention, device_type):
        return None
    name = FAST[device_type]
    reasons = unsupported_reasons(name, Call(row.attention, device_type))
    return {"rival": name, "failed": "; ".join(reasons)}


def measure(row: Row, protocol: Protocol) -> list[Record]:
    """The records of a row, one for each implementation; one that fails says why, and where the row itself cannot be
    made all of them do."""
    names = implementations(row, protocol)
    facts = identity(row, protocol)
    subject: Subject | None = None
    try:
        subject = row.make(protocol.setting)
        facts |= describe(subject, alone=row.model is None)
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
        found.append(facts | figures(name, contest, facts) | {"rival": name, "telemetry": state | energy})
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


def admitted(subject: Subject, names: list[str], protocol: Protocol, *, alone: bool) -> Contest:
    """The contest of those who compute what the reference does; beside them the network without attention, or a plain
    copy of the inputs of a module alone."""
    contest = Contest(device_of(protocol), Effort(rounds=protocol.repeats, budget_seconds=math.inf), launches=(None,))
    truth, eager = truths(subject)
    for name in names:
        module = torch.compile(subject.module, dynamic=False) if name == COMPILE else subject.module
        call = partial(answers, module, *subject.inputs)
        context = partial(inference, name if name in BACKENDS else "reference")
        contest.enter(name, call, partial(first, call), context, truth, eager)
    if subject.plain is not None:
        contest.beside(PLAIN, partial(answers, subject.plain, *subject.inputs), partial(inference, "reference"))
    if alone:
        copied = tensors(subject.inputs)
        contest.beside(COPY, partial(torch._foreach_copy_, [torch.empty_like(x) for x in copied], copied))
    return contest


def truths(subject: Subject) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the reference computes for the first images, in float64 and in the run's dtype."""
    few = nested(lambda x: x[:CHECKED].clone(memory_format=torch.preserve_format), subject.inputs)
    exact = deepcopy(subject.module).double()
    with inference("reference"):
        return answers(exact, *nested(lambda x: x.double(), few)), answers(subject.module, *few)


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
    return where | row.identity | {"work": WORK} | ({"note": row.note} if row.note else {})


def describe(subject: Subject, *, alone: bool) -> Record:
    """Parameters, multiply-adds of one image, and of a module alone the bytes that have to move."""
    batch = tensors(subject.inputs)[0].shape[0]
    found: Record = {
        "parameters": sum(p.numel() for p in subject.module.parameters()),
        "multiply_adds": None,
    }
    with suppress(Exception):  # an operator of the caller's own that cannot be counted
        found["multiply_adds"] = multiply_adds(subject.module, *subject.inputs) / batch
    if alone:  # every module's output has its input's size
        found["bytes_moved_at_least"] = 2 * sum(x.numel() * x.element_size() for x in tensors(subject.inputs))
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
