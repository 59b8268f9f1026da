"""What the registered operators cost under `torch.utils.flop_counter.FlopCounterMode`, and a model's multiply-adds.

An operator counts what its definition in `fastattn.reference` costs, whatever its backend does instead: convolutions
and matrix products, two operations for each multiply-add, as torch counts them. Softmax, norms, pooling, resizing and
gates count nothing. The number is torch's own count of the definition, run on meta tensors, and for a backward operator
of autograd through it: torch leaves the groups out of a grouped convolution's weight gradient, and so does this.

So the operators that a module runs sum to what eager counts, but where a backend composes torch's operators otherwise:
CFSAM makes two convolutions one where that is less, and its attention on the CPU, torch's, counts the scores again in
backward; LGA on a GPU runs its forward again there, up to the last convolution; ACP and CAT without the extension
follow their algebra. `multiply_adds` counts the definition on every machine. Parameters are taken to be trained all or
none, as the operators take them. Sizes that a compiler left symbolic count nothing.

`torch.utils.flop_counter` imports Triton, so this package does not import it: the formulas join its registry when
somebody does.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from .. import reference
from ..lga.reference import Branch, Separable
from .backends import use_backend
from .reference import depthwise as depthwise_reference

COUNTER = "torch.utils.flop_counter"
_ATTENTION = "_scaled_dot_product_flash_attention"
# what the compositions use and torch, or 2.11, does not count: operator of aten -> the one that it counts like
LIKE = {
    "addmm_": "addmm",
    "baddbmm_": "baddbmm",
    f"{_ATTENTION}_for_cpu": _ATTENTION,
    f"{_ATTENTION}_for_cpu_backward": f"{_ATTENTION}_backward",
}


# The definitions, each of one operation, by the names of the arguments that its two operators have in common.


def smsa(x: Tensor, params: Sequence[Tensor], gate_layer: str, **_) -> Tensor:
    return reference.smsa(x, params[:4], params[4:8], params[8:10], params[10:12], gate_layer=gate_layer)


def pcsa(
    x: Tensor, params: Sequence[Tensor], head_num: int, window_size: int, down_sample_mode: str, gate_layer: str, **_
) -> Tensor:
    return reference.pcsa(
        x,
        params[:2],
        params[2:5],
        params[5:] or None,
        head_num=head_num,
        window_size=window_size,
        down_sample_mode=down_sample_mode,
        gate_layer=gate_layer,
    )


def scsa(x: Tensor, params: Sequence[Tensor], **options) -> Tensor:
    return pcsa(smsa(x, params[:12], **options), params[12:], **options)


def lga(
    x: Tensor,
    params: Sequence[Tensor],
    num_scales: int,
    branches: Sequence[int],
    num_heads: int,
    released: bool,
    **_,
) -> Tensor:
    flat = iter(params)

    def affine() -> tuple[Tensor, Tensor]:
        return next(flat), next(flat)

    def separable(count: int) -> list[Separable]:
        return [Separable(affine(), affine()) for _ in range(count)]

    scales, weights, encoding = separable(num_scales), affine(), next(flat)
    groups = [Branch(separable(count), next(flat)) for count in branches]
    contraction = "released" if released else "paper"
    return reference.local_global_attention(
        x, scales, weights, encoding, groups, affine(), num_heads=num_heads, contraction=contraction
    )


def depthwise(x: Tensor, weights: Sequence[Tensor], strides: Sequence[int], **_) -> list[Tensor]:
    pairs = zip(weights, strides, strict=True)
    return [depthwise_reference(x, (weight, None), stride) for weight, stride in pairs]


def scale_mix(x: Tensor, weight: Tensor, **_) -> Tensor:
    return F.conv2d(x, weight)


def gram_attention(
    features: Sequence[Tensor], weights: Sequence[Tensor], num_heads: int, contraction: str, **_
) -> list[Tensor]:
    """`fastattn.lga.reference.attend` behind its depthwise convolution, which is an operator of its own."""

    def attend(x: Tensor, weight: Tensor) -> Tensor:
        qkv = F.conv2d(x, weight, groups=num_heads)
        q, k, v = (t.unflatten(1, (num_heads, -1)).flatten(3) for t in qkv.chunk(3, dim=1))  # [B, heads, d, HW]
        attention = (q @ k.mT).softmax(dim=3)
        if contraction == "released":
            attention, v = attention.sum(dim=3, keepdim=True), v.sum(dim=2, keepdim=True)
        return attention @ v

    return list(map(attend, features, weights))


def acp(
    x: Tensor,
    height: int,
    width: int,
    weights: Sequence[Tensor],
    proj_weight: Tensor,
    pool_size: int,
    **_,
) -> Tensor:
    if x.dim() == 3:  # tokens, of which the last are the map's
        x = x[:, -height * width :].mT.unflatten(2, (height, width))
    aggregate = "sum" if proj_weight.shape[0] == proj_weight.shape[1] else "concat"
    convs = [(weight, None) for weight in weights]
    return reference.aggressive_conv_pooling(x, convs, (proj_weight, None), pool_size=pool_size, aggregate=aggregate)


def whole_acp(x: Tensor, params: Sequence[Tensor], pool_size: int, **_) -> Tensor:
    *weights, proj = params[::2]
    height, width = x.shape[2:]
    return acp(x, height, width, weights, proj, pool_size)


def cat(x: Tensor, score: Tensor, value: Tensor, out: Tensor, **_) -> Tensor:
    return reference.conceptual_attention(x, score, (value, None), (out, None))


def whole_cat(x: Tensor, params: Sequence[Tensor], **_) -> Tensor:
    return cat(x, params[0], params[1], params[3])


def partition_attention(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int, **_) -> Tensor:
    return reference.partition_attention(q, k, v, num_parts, num_heads)


def token_gather(**_) -> tuple[()]:
    return ()


DEFINITIONS: dict[str, Callable[..., Tensor | Sequence[Tensor]]] = {
    definition.__name__: definition
    for definition in (
        *(scsa, smsa, pcsa, lga, whole_acp, whole_cat),
        *(depthwise, scale_mix, gram_attention, acp, cat, partition_attention, token_gather),
    )
}


class _Shape(tuple):
    """Stands for a tensor."""


def _frozen(value: Any) -> Any:
    """Return what decides on the count of an argument, hashable."""
    if isinstance(value, Tensor):
        return _Shape(value.shape)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any, needs_grad: bool) -> Any:
    """Return an argument again, with meta tensors for tensors."""
    if isinstance(value, _Shape):
        return torch.empty(value, device="meta", requires_grad=needs_grad)
    return [_thawed(each, needs_grad) for each in value] if isinstance(value, tuple) else value


def _tensors(values: Any) -> list[Tensor]:
    """Return all tensors in nested sequences."""
    if isinstance(values, Tensor):
        return [values]
    return [t for value in values for t in _tensors(value)] if isinstance(values, list | tuple) else []


def _is_symbolic(frozen: Any) -> bool:
    return any(map(_is_symbolic, frozen)) if isinstance(frozen, tuple) else isinstance(frozen, torch.SymInt)


def flops(operator: str, *args: Any, out_val: Any = None) -> int:
    """Return what a call of a registered operator costs, by its name without the namespace: the formula for torch."""
    frozen = _frozen(args)
    return 0 if _is_symbolic(frozen) else _flops(operator, frozen)


@lru_cache(maxsize=4096)
def _flops(operator: str, args: tuple) -> int:
    with ThreadPoolExecutor(1) as thread:  # which no mode of the caller reaches
        return thread.submit(_count, operator, args).result()


def _count(operator: str, args: tuple) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    schema = getattr(torch.ops.fastattn, operator).default._schema
    known = dict(zip((argument.name for argument in schema.arguments), args, strict=True))
    name, _, way = operator.rpartition("_")
    backward = way == "backward"
    need_params, need_x = known.get("need_params", True), known.get("need_x", True)
    arguments = {
        key: _thawed(value, backward and (need_x if key == "x" else need_params)) for key, value in known.items()
    }
    with FlopCounterMode(display=False) as forward:
        outs = DEFINITIONS[name](**arguments)
    if not backward:
        return forward.get_total_flops()
    outs, leaves = ([t for t in _tensors(found) if t.requires_grad] for found in (outs, [*arguments.values()]))
    with FlopCounterMode(display=False) as counter:
        if outs:
            torch.autograd.grad(outs, leaves, [torch.empty_like(out) for out in outs], allow_unused=True)
    return counter.get_total_flops()


_operators: list[str] = []


def register(operator: str) -> None:
    """Have `FlopCounterMode` count a registered operator, by its name without the namespace."""
    _operators.append(operator)
    if COUNTER in sys.modules:
        _add(sys.modules[COUNTER], operator)


def _add(counter: ModuleType, operator: str) -> None:
    packet = getattr(torch.ops.fastattn, operator)
    counter.register_flop_formula(packet, get_raw=True)(partial(flops, operator))


class _OnImport(MetaPathFinder):
    """Finds torch's counter where it lies, and has the formulas added once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != COUNTER:
            return None
        sys.meta_path.remove(self)  # it is looked for once, and found by whoever finds modules here
        spec = find_spec(fullname)
        if spec and spec.loader:
            spec.loader.exec_module = partial(_load, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _load(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    _add_likes(module)
    for operator in _operators:
        _add(module, operator)


def _add_likes(counter: ModuleType) -> None:
    for other, known in LIKE.items():
        formula = counter.flop_registry[getattr(torch.ops.aten, known)]
        counter.flop_registry.setdefault(getattr(torch.ops.aten, other), formula)


sys.meta_path.insert(0, _OnImport())
if COUNTER in sys.modules:
    _add_likes(sys.modules[COUNTER])


def multiply_adds(model: nn.Module, *inputs: Any) -> int:
    """Return the multiply-adds of a model's forward on inputs of these shapes, by the definitions, doing no arithmetic:
    for one image the figure that papers print.

    What the model does must not depend on the values of tensors: of a detector take backbone and head.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fakes = FakeTensorMode(allow_non_fake_inputs=True)  # that a module holds outside of its parameters and buffers
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state, inputs = tree_map_only(Tensor, fakes.from_tensor, (tensors, inputs))
    products = sdpa_kernel(SDPBackend.MATH)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), use_backend("reference"), _no_fast_encoder(), products, fakes, counter:
        functional_call(model, state, inputs)
    return counter.get_total_flops() // 2


@contextmanager
def _no_fast_encoder() -> Iterator[None]:
    """Have torch's transformer layers run operators that are counted, not one that is none."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
