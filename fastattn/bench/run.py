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
from .accuracy import assert_accurate, relative_error
from .devices import Cpu, device
from .interleave import WARM_CALLS, Rival, Timing, interleave, speedup
from .networks import answers, inference
from .tables import Row, Setting, Subject
from .telemetry import watch

PLAIN, EAGER, COMPILE, COPY = "plain", "eager", "compile", "copy"
CHECKED = 2  # images: float64 convolutions are slow, and every image takes the same path
COMPILERS_ROOM = 10.0  # of torch.compile's rounding: enough for other orders of sums, far less than another network
STEADY_SECONDS = 1.0  # that a GPU works at one rival for its energy: the driver's meter is slow
WORK = "forward"
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
            "dtype": str(setting.dtype).removeprefix("torch."),
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
    fast = fast_backend(row.attention, protocol.setting.device) if row.fast else None
    return [EAGER, *([COMPILE] if protocol.compiled else []), *([fast] if fast else [])]


def fast_backend(attention: str, device_type: str) -> str | None:
    """The backend, the reference left out, that serves an attention on a device."""
    call = Call(attention, device_type)
    names = (name for name in BACKENDS if name != "reference" and not unsupported_reasons(name, call))
    return next(names, None)


def without_fast(row: Row, protocol: Protocol) -> Record | None:
    """What a record says where no fast backend serves a row that one should."""
    device_type = protocol.setting.device
    if not row.fast or fast_backend(row.attention, device_type):
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
    hardware = device_of(protocol)
    copied = tensors(subject.inputs) if "bytes_moved_at_least" in facts else []
    rivals, errors, failed = admitted(subject, names, copied)
    timings: dict[str, Timing] = {}
    with watch(hardware.type) as seen:
        if set(rivals) & set(names):
            timings = interleave(
                list(rivals.values()),
                rounds=protocol.repeats,
                budget_seconds=math.inf,
                stopwatch=hardware.stopwatch,
                before_round=hardware.before_round,
            )
    state = seen.facts()
    found = []
    for name in names:
        if name in failed:
            found.append(facts | {"rival": name, "failed": failed[name]})
            continue
        measured = figures(name, timings, facts) | {"relative_error": errors[name]}
        energy = {} if hardware.type == "cpu" else steady(rivals[name], hardware, facts["shape"][0])
        found.append(facts | measured | {"rival": name, "telemetry": state | energy})
    return found


def figures(name: str, timings: dict[str, Timing], facts: Record) -> Record:
    """Times in milliseconds, images per second by the median, ratios over the others of the same rounds."""
    timing = timings[name]
    found: Record = {
        "least_ms": timing.least * 1e3,
        "median_ms": timing.median * 1e3,
        "quartiles_ms": [quartile * 1e3 for quartile in timing.quartiles],
        "rounds": len(timing.rounds),
        "calls_per_round": timing.calls,
        "images_per_s": facts["shape"][0] / timing.median,
        "speedup": {other: speedup(timings, name, other).facts() for other in timings if other != name},
    }
    if "bytes_moved_at_least" in facts:
        found["gb_per_s"] = facts["bytes_moved_at_least"] / timing.median / 1e9
    if COPY in timings:
        found["copy_gb_per_s"] = facts["bytes_moved_at_least"] / timings[COPY].median / 1e9
    return found


def admitted(
    subject: Subject, names: list[str], copied: list[Tensor]
) -> tuple[dict[str, Rival], dict[str, float], dict[str, str]]:
    """Who is timed, those who compute what the reference does, their errors, and why others are not; beside them the
    network without attention, or a plain copy of a module's inputs."""
    rivals: dict[str, Rival] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    truth, eager = truths(subject)
    for name in names:
        backend = name if name in BACKENDS else "reference"
        module = torch.compile(subject.module, dynamic=False) if name == COMPILE else subject.module
        context = partial(inference, backend)
        call = partial(answers, module, *subject.inputs)
        try:
            with context():
                found = {key: out[:CHECKED].clone() for key, out in call().items()}
            assert_accurate(found, truth, eager, room=COMPILERS_ROOM if name == COMPILE else 1.0)
        except Exception as error:  # an assertion, a compiler, memory
            failed[name] = reason(error)
            continue
        errors[name] = max(relative_error(found[key], exact) for key, exact in truth.items())
        rivals[name] = Rival(name, call, context)
    if subject.plain is not None:
        rivals[PLAIN] = Rival(PLAIN, partial(answers, subject.plain, *subject.inputs), partial(inference, "reference"))
    if copied:
        rivals[COPY] = Rival(COPY, partial(torch._foreach_copy_, [torch.empty_like(x) for x in copied], copied))
    return rivals, errors, failed


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
    dtype = str(protocol.setting.dtype).removeprefix("torch.")
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


def reason(error: Exception) -> str:
    """An error in one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


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
