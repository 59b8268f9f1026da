"""A model in a file of standard operators: plain functions over the exporters' own, each checked by running the file.

`example` is what the model is called with, a tensor or a tuple of arguments, of the model's dtype and on its device;
what is no tensor among them becomes a constant, and the file takes the tensors alone. `dynamic` names the sizes that
may differ in the file's calls: "batch", and of maps "height" and "width". With `verify` the file is run on the example,
and where sizes are dynamic on larger inputs as well.

ValueError for a model in training mode, for an example that a dynamic size cannot be taken from, and for a size that
cannot be dynamic; ArithmeticError where the file computes something else; ImportError without the exporter.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from .core.checks import LIMITS
from .core.operation import decompositions

AXES = {"batch": 0, "height": 2, "width": 3}
Run = Callable[..., Any]


def to_program(model: nn.Module, example: Any, *, dynamic: Sequence[str] = (), verify: bool = True) -> Any:
    """Return a `torch.export.ExportedProgram` of standard operators, which loads where fastattn is not installed."""
    model, arguments = _of_tensors(model, example)
    program = _program(model, arguments, dynamic).run_decompositions(decompositions())
    if verify:
        _verify(program.module(), model, arguments, dynamic)
    return program


def to_onnx(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    dynamic: Sequence[str] = (),
    opset: int = 18,
    verify: bool = True,
) -> None:
    """Write an ONNX file of standard operators, verified by onnxruntime."""
    program = to_program(model, example, dynamic=dynamic, verify=False)
    torch.onnx.export(program, (), str(path), opset_version=opset, dynamo=True, verbose=False)
    if verify:
        _verify(_onnxruntime(path), *_of_tensors(model, example), dynamic)


def to_openvino(
    model: nn.Module, example: Any, path: str | Path, *, dynamic: Sequence[str] = (), verify: bool = True
) -> None:
    """Write OpenVINO's representation, path (.xml) and the weights beside it (.bin), in the model's own precision."""
    import openvino

    program = to_program(model, example, dynamic=dynamic, verify=False)
    openvino.save_model(openvino.convert_model(program), str(path), compress_to_fp16=False)
    if verify:
        compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(*arguments: Any) -> list[Tensor]:
            found = compiled([tensor.numpy() for tensor in _tensors(arguments)])
            return [torch.from_numpy(found[i]) for i in range(len(compiled.outputs))]

        _verify(run, *_of_tensors(model, example), dynamic)


def to_torchscript(
    model: nn.Module, example: Any, path: str | Path, *, dynamic: Sequence[str] = (), verify: bool = True
) -> None:
    """Write a traced TorchScript file, which loads where fastattn is not installed.

    A trace holds no names of sizes: `dynamic` is what is verified.
    """
    model, arguments = _of_tensors(model, example)
    _check(model, arguments, dynamic)
    with torch.no_grad():
        torch.jit.trace(model, arguments).save(str(path))
    if verify:
        _verify(torch.jit.load(str(path)), model, arguments, dynamic)


def to_aoti(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    kernels: str = "native",
    dynamic: Sequence[str] = (),
    verify: bool = True,
) -> None:
    """Write an AOTInductor package (.pt2), for `torch._inductor.aoti_load_package`.

    With `kernels="native"` fastattn's kernels compute, and a process that loads the package imports fastattn first;
    with "standard" it is Inductor's code alone, which needs nothing.
    """
    if kernels not in ("native", "standard"):
        raise ValueError(f"kernels must be native or standard, got {kernels!r}")
    model, arguments = _of_tensors(model, example)
    program = _program(model, arguments, dynamic)
    if kernels == "standard":
        program = program.run_decompositions(decompositions())
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    if verify:
        _verify(torch._inductor.aoti_load_package(str(path)), model, arguments, dynamic)


class _OfTensors(nn.Module):
    """A model as a function of the tensors among its arguments: the others are constants."""

    def __init__(self, model: nn.Module, arguments: tuple):
        super().__init__()
        self.model = model
        self.leaves, self.spec = tree_flatten(arguments)

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return self.model(*tree_unflatten(leaves, self.spec))


def _of_tensors(model: nn.Module, example: Any) -> tuple[nn.Module, tuple]:
    """Return a model and its arguments, of which all are tensors or lists of tensors."""
    arguments = example if isinstance(example, tuple) else (example,)
    if len(_tensors(arguments)) == len(tree_leaves(arguments)):
        return model, arguments
    return _OfTensors(model, arguments).train(model.training), (*_tensors(arguments),)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _dims(tensor: Tensor, dynamic: Sequence[str]) -> dict[int, str]:
    """Return the dimensions of a tensor that are dynamic, with their names: a map has heights and widths."""
    return {AXES[name]: name for name in dynamic if name == "batch" or tensor.dim() == 4}


def _check(model: nn.Module, arguments: tuple, dynamic: Sequence[str]) -> None:
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    if unknown := [name for name in dynamic if name not in AXES]:
        raise ValueError(f"dynamic sizes are among {', '.join(AXES)}, got {', '.join(unknown)}")
    for tensor in _tensors(arguments):
        for dim, name in _dims(tensor, dynamic).items():
            if tensor.shape[dim] < 2:
                raise ValueError(f"the example's {name} is {tensor.shape[dim]}: to be dynamic it has to be at least 2")


def _program(model: nn.Module, arguments: tuple, dynamic: Sequence[str]) -> Any:
    """Return the program with fastattn's operators in it; ValueError with the sizes that cannot be dynamic."""
    _check(model, arguments, dynamic)
    try:
        return _exported(model, arguments, dynamic)
    except Exception as error:
        if not dynamic:
            raise
        alone = [name for name in dynamic if len(dynamic) > 1 and not _exports(model, arguments, name)]
        which = ", ".join(alone or dynamic) + " cannot be dynamic in this model"
        raise ValueError(f"{which}{' together' * (not alone and len(dynamic) > 1)}: {error}") from error


def _exports(model: nn.Module, arguments: tuple, name: str) -> bool:
    """Return whether a size can be dynamic by itself."""
    try:
        _exported(model, arguments, (name,))
    except Exception:
        return False
    return True


def _exported(model: nn.Module, arguments: tuple, dynamic: Sequence[str]) -> Any:
    shapes = tree_map_only(Tensor, lambda t: dict.fromkeys(_dims(t, dynamic), torch.export.Dim.DYNAMIC), arguments)
    if isinstance(model, _OfTensors):  # which takes any number
        shapes = (shapes,)
    with torch.no_grad():
        return torch.export.export(model, arguments, dynamic_shapes=shapes if dynamic else None)


def _onnxruntime(path: str | Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [known.name for known in session.get_inputs()]

    def run(*arguments: Any) -> list[Tensor]:
        found = session.run(None, dict(zip(names, (t.numpy() for t in _tensors(arguments)), strict=True)))
        return [torch.from_numpy(out) for out in found]

    return run


def _larger(arguments: tuple, dynamic: Sequence[str]) -> tuple:
    """Return arguments of which each dynamic size is larger: one image more, maps half as high and wide again."""

    def grow(tensor: Tensor) -> Tensor:
        dims = _dims(tensor, dynamic)
        if 0 in dims:
            tensor = torch.cat([tensor, tensor[:1]])
        for dim in dims.keys() - {0}:
            tensor = torch.cat([tensor, tensor.narrow(dim, 0, tensor.shape[dim] // 2)], dim)
        return tensor

    return tree_map_only(Tensor, grow, arguments)


def _verify(run: Run, model: nn.Module, arguments: tuple, dynamic: Sequence[str]) -> None:
    """ArithmeticError unless what was exported computes what the model does."""
    for given in (arguments, *([_larger(arguments, dynamic)] if dynamic else [])):
        sizes = ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(given))
        with torch.no_grad():
            expected = _tensors(model(*given))
            found = _tensors(run(*given))
        truth: list[Tensor] = []
        for i, (out, wanted) in enumerate(zip(found, expected, strict=True)):
            if out.shape != wanted.shape:
                raise ArithmeticError(f"output {i} for {sizes} has shape {tuple(out.shape)}, not {tuple(wanted.shape)}")
            limit, error = LIMITS[wanted.dtype], _distance(out, wanted)
            if error <= limit:
                continue
            truth = truth or _in_float64(model, given)  # rounding grows with a model's depth
            if not _distance(out, truth[i]) <= max(limit, 2 * _distance(wanted, truth[i])):
                raise ArithmeticError(f"output {i} for {sizes} is {error:.1e} off the model's, relative to its norm")


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _in_float64(model: nn.Module, arguments: tuple) -> list[Tensor]:
    wide = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, arguments)
    with torch.no_grad():
        return _tensors(copy.deepcopy(model).double()(*wide))
