"""One call, in the process that may crash: made of a case, run, and held against the reference in float64."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mkldnn

import fastattn
from fastattn.bench.accuracy import FLOOR, errors
from fastattn.core import native
from tests.helpers import FAST, FORMATS, INTERPRETED, randomize

from . import faults
from .cases import LEVELS, Case
from .memory import Arena, contents, lay

TIMES_EAGER = 20
SUBNORMAL = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps  # the least one
Results = dict[str, Tensor]
Failure = dict[str, str]  # what, error, allowed


class Refused(Exception):
    """The reference refuses the call, too, or the backend says why it cannot serve it."""


@contextmanager
def environment() -> Iterator[None]:
    """Make interpreted kernels quick, and right where Triton's interpreter is not."""
    if not INTERPRETED:
        yield
        return
    from benchmarks import interpreter

    with interpreter.quick(), interpreter.bfloat16(), interpreter.unchecked():
        yield


def judge(case: Case) -> list[Failure]:
    """Run a case and return what is wrong with it; Refused where there is nothing to run."""
    _set_up(case)
    arena = Arena(case["guard"])
    try:
        module = _module(case)
    except ValueError as error:
        raise Refused(str(error)) from error
    inputs, grads = _tensors(case, arena)
    module = _placed(module, case, arena)
    try:
        eager = _run(case, module, inputs, grads, "reference")
        expected = None
    except Exception as error:  # whatever eager raises
        expected = error
    before = [contents(t) for t in (*inputs, *grads, *module.parameters())]
    try:
        with faults.planted(case["plant"]) if "plant" in case else nullcontext(), arena.serves_empty():
            got, again = (_run(case, module, inputs, grads, FAST) for _ in range(2))
    except Exception as error:
        return _judge_error(error, expected, FAST)
    if isinstance(expected, ValueError):
        return [_failure("accepted", "no error", _named(expected))]
    if expected is not None:  # what PyTorch's operators do not take
        raise Refused(_named(expected))
    found = []
    after = [contents(t) for t in (*inputs, *grads, *module.parameters())]
    names = [f"input {i}" for i in range(len(inputs))] + [f"grad_out {i}" for i in range(len(grads))]
    names += [name for name, _ in module.named_parameters()]
    for name, one, other in zip(names, before, after, strict=True):
        if not torch.equal(one, other):
            found.append(_failure(f"{name} was written to", "changed", "unchanged"))
    if arena.spilled():
        found.append(_failure("written beside a tensor", "bytes changed", "none"))
    found += [
        _failure(f"{name}, run again", "other bits", "the same")
        for name, tensor in got.items()
        if not torch.equal(_bits(tensor), _bits(again[name]))
    ]
    if inputs[0].dtype is not torch.float64:
        found += _judge_numbers(case, module, inputs, grads, got, eager)
    return found


def _set_up(case: Case) -> None:
    torch.set_num_threads(case["threads"])
    if FAST == "native":
        known = native.extension().isa_levels()
        wanted = LEVELS[: LEVELS.index(case["isa"]) + 1]
        native.extension().set_isa([level for level in LEVELS if level in known and level in wanted][-1])


def _module(case: Case) -> nn.Module:
    options = {key: tuple(value) if type(value) is list else value for key, value in case["options"].items()}
    module = randomize(getattr(fastattn, case["module"])(**options), case["seed"])
    scale = {"normal": 1.0, "tiny": 1e-4, "large": 3.0}[case["weights"]]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    return module.to(getattr(torch, case["param_dtype"])).eval()


def _values(shape: list[int], kind: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return numbers of a dtype and a kind: by channels of differing means."""
    half = dtype is torch.float16
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x += 0.5 * torch.randn(shape[1] if len(shape) > 1 else 1, *[1] * (len(shape) - 2), generator=generator)
    if not dtype.is_floating_point and not dtype.is_complex:
        return (x * 4).to(dtype)
    if kind == "tiny":
        x *= 1e-4 if half else 1e-20
    elif kind == "denormal":
        x *= torch.finfo(dtype).smallest_normal / 8
    elif kind == "large":
        x *= 100 if half else 1e4
    elif kind == "constant":
        x = torch.full(shape, 1.7)
    elif kind == "mean 1000":
        x += 1000
    elif kind == "zeros":
        x = torch.zeros(shape)
    elif kind == "sparse":
        x *= torch.rand(shape, generator=generator) < 0.05
    elif kind == "nan" and x.numel():
        x.view(-1)[int(torch.randint(x.numel(), (), generator=generator))] = torch.nan
    return x.to(dtype)


def _tensors(case: Case, arena: Arena) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs and the gradients of the outputs."""
    generator = torch.Generator().manual_seed(case["seed"])
    dtype = getattr(torch, case["dtype"])
    made = []
    for layouts, kind in ((case["layouts"], case["values"]), (case["grad_layouts"], "normal")):
        values = [_values(shape, kind, dtype, generator) for shape in case["shapes"]]
        made.append([lay(arena, x, layout) for x, layout in zip(values, layouts, strict=True)])
    return made[0], made[1]


def _placed(module: nn.Module, case: Case, arena: Arena) -> nn.Module:
    """Move the parameters into the arena, as they are to lie, and freeze those that want no gradient."""
    kind = case["param_layout"]
    generator = torch.Generator().manual_seed(case["seed"])
    for parameter in module.parameters():
        dims = parameter.dim()
        step = [2 if kind == "gaps" and axis == dims - 1 else 1 for axis in range(dims)]
        layout = {"order": [*range(dims)], "step": step, "pad": [0] * dims, "offset": 0, "expand": []}
        parameter.data = lay(arena, parameter.detach(), layout | {"offset": 1 if kind == "offset" else 0})
        some = bool(torch.rand((), generator=generator) < 0.5)
        parameter.requires_grad_({"x": False, "some": some}.get(case["grad"], True))
    return module


def _run(case: Case, module: nn.Module, inputs: list[Tensor], grads: list[Tensor], backend: str) -> Results:
    """Return the outputs and every gradient that is wanted, by name."""
    recorded = case["grad"] not in ("none", "inference")
    wants_x = case["grad"] in ("all", "x", "some")
    autocast = case["autocast"] and inputs[0].dtype is not torch.float64
    with ExitStack() as stack:
        stack.enter_context(fastattn.use_backend(backend))
        # oneDNN may never come back from building float16 depthwise convolutions
        stack.enter_context(mkldnn.flags(enabled=case["dtype"] != "float16" != case["autocast"], allow_tf32=None))
        if autocast:
            stack.enter_context(torch.autocast("cpu", getattr(torch, case["autocast"])))
        if not recorded:
            stack.enter_context(torch.inference_mode() if case["grad"] == "inference" else torch.no_grad())
        else:
            inputs = [x.detach().requires_grad_(wants_x) for x in inputs]
        what: Any = inputs if case["module"] == "CFSAM" else inputs[0]
        outs = module(what, *([tuple(case["size"])] if "size" in case else []))
        outs = outs if isinstance(outs, list) else [outs]
        results = {"out" if len(outs) == 1 else f"out {i}": out.detach() for i, out in enumerate(outs)}
        names = ["grad_x"] if len(outs) == 1 else [f"grad_x {i}" for i in range(len(outs))]
        wanted = dict(zip(names, inputs, strict=True)) | dict(module.named_parameters())
        wanted = {name: t for name, t in wanted.items() if t.requires_grad} if recorded else {}
        if wanted:
            grads = [g.to(out.dtype) for g, out in zip(grads, outs, strict=True)]
            results |= zip(wanted, torch.autograd.grad(outs, [*wanted.values()], grads), strict=True)
    return results


def _judge_error(error: Exception, expected: Exception | None, backend: str) -> list[Failure]:
    """Return what is wrong with an error of the backend, where the reference raised `expected` or nothing."""
    if not isinstance(error, ValueError | RuntimeError) or not str(error):
        return [_failure("error", _named(error), "a ValueError or RuntimeError with text")]
    reasons = str(error).startswith(f"backend {backend!r} cannot serve")
    if isinstance(expected, ValueError) and not reasons and _named(error) != _named(expected):
        return [_failure("error", _named(error), _named(expected))]
    if expected is None and not reasons:
        return [_failure("error", _named(error), "none: the reference computes it")]
    raise Refused(str(error)) from error


def _judge_numbers(
    case: Case, module: nn.Module, inputs: list[Tensor], grads: list[Tensor], got: Results, eager: Results
) -> list[Failure]:
    """Return which results are further from float64's than eager's times 20.

    One run of eager may be near the truth by luck, so that the largest error of several counts: in both memory formats,
    and of float64 where x and the parameters are rounded once more, which no arithmetic of that dtype can avoid.
    """
    double = copy.deepcopy(module).double()
    exact = [x.double() for x in inputs], [g.double() for g in grads]
    truth = _run(case, double, *exact, "reference")
    runs = [eager]
    for layout in FORMATS if inputs[0].dim() == 4 else ():
        dense = [x.contiguous(memory_format=layout) for x in inputs]
        runs.append(_run(case, module, dense, grads, "reference"))
    generator = torch.Generator().manual_seed(case["seed"])
    with torch.no_grad():
        for parameter, stored in zip(double.parameters(), module.parameters(), strict=True):
            parameter.copy_(_rounded(parameter, stored.dtype, generator))
    near = _run(case, double, [_rounded(x, inputs[0].dtype, generator) for x in exact[0]], exact[1], "reference")
    runs.append({name: tensor.to(eager[name].dtype) for name, tensor in near.items()})
    for name, tensor in got.items():
        for what in ("shape", "dtype"):
            found, expected = getattr(tensor, what), getattr(eager[name], what)
            if found != expected:
                return [_failure(f"{what} of {name}", str(found), str(expected))]
    found = []
    for name, tensor in got.items():
        finite = torch.isfinite(truth[name]) & torch.stack([run[name].isfinite() for run in runs]).all(0)
        finite &= truth[name].abs() < 0.9 * torch.finfo(tensor.dtype).max
        if wrong := int((finite & ~tensor.isfinite()).sum()):
            found.append(_failure(f"not finite in {name}", f"{wrong} of {tensor.numel()}", "where eager's are not"))
        # what underflows in float32 may be anything below its normal numbers: a sigmoid of -200, say
        finite &= (truth[name].abs() > SUBNORMAL) | (tensor.abs() > 4 * torch.finfo(torch.float32).tiny)
        for results in (got, truth, *runs):
            results[name] = results[name].masked_fill(~(finite & tensor.isfinite()), 0)
    for name, error in errors(got, truth, *runs).items():
        allowed = max(FLOOR[got[name].dtype], TIMES_EAGER * error.eager)
        if not error.error <= allowed:
            found.append(_failure(name, f"{error.error:.2e}", f"{allowed:.2e}"))
    return found


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _rounded(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return x times 1 plus noise as large as a dtype's rounding."""
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5
    return x * (1 + noise * torch.finfo(dtype).eps)


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor's bits as integers, by which one NaN equals itself."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def _failure(what: str, error: str, allowed: str) -> Failure:
    return {"what": what, "error": error, "allowed": allowed}
