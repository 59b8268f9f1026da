"""An attention behind blocks of a model that is there already: names, layer indices and attributes stay.

The attention is a child of the block, named `fastattn`, which a forward hook calls on what the block returns. The hook
is a function of this module and its handle an attribute of the block, so that copies and pickled models keep it, and so
does a block whose `forward` is replaced on the instance, as Ultralytics does when it fuses layers. An `nn.Sequential`
runs its children by itself and gets no hook.
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

CHILD, HANDLE = "fastattn", "_fastattn_handle"

Attention = str | Callable[..., nn.Module]  # a name that `models.attentions()` knows, or what makes one for channels
Where = str | Mapping[str, Attention] | type[nn.Module] | Callable[[str, nn.Module], Any]


class Inserted(NamedTuple):
    """An attention in a model: the name of the block that it follows, its own name, the channels of the map, or of each
    of several maps, that the block returns, and the module."""

    name: str
    attention: str
    channels: int | list[int]
    module: nn.Module


def insert(
    model: nn.Module, where: Where, attention: Attention | None = None, *, example: Any = None, **kwargs: Any
) -> list[Inserted]:
    """Put an attention behind blocks of a model, in place, and return where: on what a block returns, a map
    (B, C, H, W), tokens (B, N, C) for "interaction", or a list or dict of maps for "cfsam"; of a tuple the first.

    `where` is `{"layer3.*": "scsa"}`, patterns of qualified names whose * ends at a dot; or, with `attention` beside
    it, one pattern or a class of modules; or a callable that takes a name and its module, and returns an attention or
    None, or with `attention` beside it whether it goes there. An attention is a name of `models.attentions()` or a
    callable that makes one for a number of channels; `kwargs` go to either.

    Channels are found by one forward without memory or arithmetic, on `example`, the arguments of forward, or else on
    an image of 224 x 224. The attention takes the block's dtype, device and training mode; its keys in the state dict
    are those of the block and `fastattn.`, all others stay. In one of Ultralytics' models, names are those in
    `yolo.model`, and training, which builds the model anew, keeps the attention.

    ValueError, with the model unchanged, where nothing matches, two patterns or nested modules of a class do, channels
    cannot be found, or the attention does not fit.
    """
    if framework := _framework_of(model):
        return framework.insert(model, where, attention, example=example, **kwargs)
    return insert_by(by_name, model, where, attention, example, kwargs)


def remove(model: nn.Module) -> list[str]:
    """Take out, in place, what `insert` put into a model, and return the names of the blocks."""
    if framework := _framework_of(model):
        return framework.remove(model)
    return detach_all(model)


def insert_by(
    known: Callable[[str], tuple[Callable[..., nn.Module], str]],
    model: nn.Module,
    where: Where,
    attention: Attention | None,
    example: Any,
    kwargs: Mapping[str, Any],
) -> list[Inserted]:
    """`insert`, with what makes an attention that goes by name."""
    places = {name: _maker(name, wanted, known) for name, wanted in _matches(model, where, attention).items()}
    blocks = {name: model.get_submodule(name) for name in places}
    for name, block in blocks.items():
        if CHILD in block._modules:
            raise ValueError(f"{name} has an attention already: fastattn.remove takes it out")
    arguments = _example(model, example)
    outputs = _outputs(model, blocks, arguments)
    done: list[Inserted] = []
    try:
        for name, make in places.items():
            channels = _channels(name, blocks[name], outputs[name][0], make.kind)
            module = make(channels, kwargs)
            attach(blocks[name], module, outputs[name][0], make.kind)
            done.append(Inserted(name, make.attention, channels, module))
            _try(done[-1], outputs[name])
        _check(model, blocks, done, arguments)
    except BaseException:
        for block in blocks.values():
            detach(block)
        raise
    return done


def attach(block: nn.Module, attention: nn.Module, output: Any, kind: str) -> None:
    """Put an attention behind a block that returns such an output."""
    tensors = chain(block.parameters(), block.buffers())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if like is not None:
        attention.to(device=like.device, dtype=like.dtype)
    attention.train(block.training)
    setattr(block, CHILD, attention)
    if not (isinstance(block, nn.Sequential) and type(block).forward is nn.Sequential.forward):
        vars(block)[HANDLE] = block.register_forward_hook(_hook_for(output, kind))


def detach_all(model: nn.Module) -> list[str]:
    """Take out what follows the blocks of a model, and return their names."""
    found = [(name, module) for name, module in model.named_modules() if CHILD in module._modules]
    for _, module in found:
        detach(module)
    return [name for name, _ in found]


def detach(block: nn.Module) -> None:
    """Take out what follows one block."""
    block._modules.pop(CHILD, None)
    if handle := vars(block).pop(HANDLE, None):
        handle.remove()


def _framework_of(model: nn.Module) -> Any:
    """The module of this package that knows a model's framework, where it builds its models anew."""
    if "ultralytics" in sys.modules:
        from . import ultralytics

        try:
            return ultralytics if ultralytics.is_model(model) else None
        except ImportError:  # too old: its models are modules like others
            return None
    return None


# The hooks: found by their names in a model that was pickled.


def attend(block: nn.Module, args: Any, output: Any) -> Any:
    """The attention on what a block returns."""
    return block._modules[CHILD](output)  # type: ignore[misc]


def attend_to_first(block: nn.Module, args: Any, output: tuple) -> tuple:
    """The attention on the first of a tuple."""
    return (block._modules[CHILD](output[0]), *output[1:])  # type: ignore[misc]


def attend_to_values(block: nn.Module, args: Any, output: Mapping) -> Any:
    """The attention on all maps of a dict."""
    maps = block._modules[CHILD]([*output.values()])  # type: ignore[misc]
    return type(output)(zip(output, maps, strict=True))  # type: ignore[call-arg]


def _hook_for(output: Any, kind: str) -> Callable[..., Any]:
    if isinstance(output, Mapping):
        return attend_to_values
    return attend_to_first if isinstance(output, tuple) and kind != "pyramid" else attend


# Which blocks.


def _matches(model: nn.Module, where: Where, attention: Attention | None) -> dict[str, Attention]:
    """What goes behind which block; ValueError where nothing or too much matches."""
    modules: dict[str, nn.Module] = {}  # also under the further names of a module that is in several places
    for name, module in model.named_modules(remove_duplicate=False):
        if name and name.rpartition(".")[2] != CHILD:
            modules[name] = module
    if isinstance(where, Mapping) == (attention is not None) and not callable(where):
        raise ValueError(
            "say what goes where: {pattern: attention}, or a pattern or a class and an attention beside it"
        )
    if isinstance(where, str | Mapping):
        patterns = where if isinstance(where, Mapping) else {where: attention}
        found = _by_pattern(modules, patterns)
    elif isinstance(where, type):
        if attention is None:
            raise ValueError(f"say which attention goes behind every {where.__name__}")
        found = {name: attention for name, module in modules.items() if isinstance(module, where)}
        if not found:
            kinds = ", ".join(sorted({type(module).__name__ for module in modules.values()}))
            raise ValueError(f"the model has no {where.__name__}; it has {kinds}")
        for outer in found:
            inner = next((name for name in found if name.startswith(f"{outer}.")), None)
            if inner:
                raise ValueError(f"both {outer} and {inner}, which is inside of it, are {where.__name__}: name one")
    else:
        answers = {name: where(name, module) for name, module in modules.items()}
        found = {name: answer if attention is None else attention for name, answer in answers.items() if answer}
        if not found:
            raise ValueError("the callable chose no module")
    unique = {id(modules[name]): name for name in reversed(found)}  # its first name
    return {name: found[name] for name in found if unique[id(modules[name])] == name}


def _by_pattern(modules: Mapping[str, nn.Module], patterns: Mapping[str, Any]) -> dict[str, Attention]:
    found: dict[str, Attention] = {}
    by: dict[str, str] = {}
    for pattern, attention in patterns.items():
        parts = pattern.split(".")
        names = [name for name in modules if _fits(name.split("."), parts)]
        if not names:
            near = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.5) or [*modules][:3]
            raise ValueError(f"no module is called {pattern!r}; there are {', '.join(near)}")
        for name in names:
            if name in by:
                raise ValueError(f"both {by[name]!r} and {pattern!r} are patterns of {name}")
            found[name], by[name] = attention, pattern
    return found


def _fits(name: list[str], pattern: list[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatchcase, name, pattern))


# Which attention.

MAP, TOKENS = "map (B, C, H, W)", "tokens (B, N, C)"
TAKES = {"map": ((4,), MAP), "tokens": ((3,), TOKENS), "any": ((3, 4), f"{MAP} or {TOKENS}")}


class _Maker(NamedTuple):
    """What makes an attention, for a map, for tokens, for a pyramid, or for either of the first two."""

    block: str
    attention: str
    make: Callable[..., nn.Module]
    kind: str

    def __call__(self, channels: int | list[int], kwargs: Mapping[str, Any]) -> nn.Module:
        try:
            made = self.make(channels, **kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.attention} for {channels} channels, behind {self.block}: {error}") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"{self.attention} has made {type(made).__name__}, which is no module")
        return made


def _maker(block: str, attention: Any, known: Callable[[str], tuple[Callable[..., nn.Module], str]]) -> _Maker:
    if isinstance(attention, str):
        make, kind = known(attention)
        return _Maker(block, attention, make, kind)
    if isinstance(attention, nn.Module) or not callable(attention):
        raise ValueError(f"an attention is a name or a callable that makes one for channels, not {attention!r}")
    return _Maker(block, getattr(attention, "__name__", repr(attention)), attention, "any")


def by_name(attention: str) -> tuple[Callable[..., nn.Module], str]:
    """What makes an attention that goes by name, and whether for a map, tokens or a pyramid; ValueError for none."""
    from ..models import attentions
    from ..models.create import ON_PYRAMIDS, ON_TOKENS, maker

    if attention not in attentions():
        raise ValueError(f"no attention {attention!r}: there are {', '.join(attentions())}")
    kind = "pyramid" if attention in ON_PYRAMIDS else "tokens" if attention in ON_TOKENS else "map"
    return maker(attention), kind


# Which channels.


def _channels(name: str, block: nn.Module, output: Any, kind: str) -> int | list[int]:
    """The channels of what a block returns; ValueError where it is not what such an attention takes."""
    if kind == "pyramid":
        maps = [*output.values()] if isinstance(output, Mapping) else output
        if isinstance(maps, list | tuple) and maps and all(isinstance(x, Tensor) and x.dim() == 4 for x in maps):
            return [x.shape[1] for x in maps]
        raise ValueError(f"{name} returns {_shape(output)}, no list of maps (B, C, H, W)")
    first = output[0] if type(output) is tuple and output else output
    dims, wanted = TAKES[kind]
    if not isinstance(first, Tensor) or first.dim() not in dims:
        raise ValueError(f"{name} returns {_shape(output)}, no {wanted}: its channels cannot be found")
    if first.dim() == 3:
        return first.shape[2]
    channels, last = first.shape[1], first.shape[3]
    norms = {module.normalized_shape for module in block.modules() if isinstance(module, nn.LayerNorm)}
    if last != channels and (last,) in norms:
        raise ValueError(f"{name} returns {_shape(output)}, which looks like (B, H, W, C), no {wanted}")
    return channels


def _shape(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def _example(model: nn.Module, example: Any) -> tuple:
    """The arguments of forward."""
    if example is not None:
        return example if isinstance(example, tuple) else (example,)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError("the channels cannot be found without an input: give `example`, the arguments of forward")
    return (torch.zeros(1, first.in_channels, 224, 224, dtype=first.weight.dtype, device=first.weight.device),)


def _outputs(model: nn.Module, blocks: Mapping[str, nn.Module], arguments: tuple) -> dict[str, list[Any]]:
    """What blocks return in one forward of the model, call by call; ValueError where one is not called."""
    found: dict[str, list[Any]] = {name: [] for name in blocks}

    def recorder(name: str) -> Callable[..., None]:
        return lambda block, args, output: found[name].append(output)

    def start_anew() -> None:
        for calls in found.values():
            calls.clear()

    handles = [block.register_forward_hook(recorder(name)) for name, block in blocks.items()]
    try:
        _forward(model, arguments, start_anew)
    finally:
        for handle in handles:
            handle.remove()
    for name, calls in found.items():
        if not calls:
            raise ValueError(f"{name} is not called by the model's forward, so that nothing can follow it")
    return found


def _forward(model: nn.Module, arguments: tuple, start_anew: Callable[[], None]) -> None:
    """One forward, evaluating and without gradients: of shapes alone, or where that cannot be, a real one."""
    with _evaluating(model), torch.no_grad():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                tensors = chain(model.named_parameters(), model.named_buffers())
                state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors}
                fake = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
                torch.func.functional_call(model, state, fake)
                return
        except Exception:  # a model that looks at values, or one that cannot run on this input either
            start_anew()
        try:
            model(*arguments)
        except Exception as error:
            shapes = [_shape(x) for x in arguments]
            raise ValueError(
                f"the model cannot run on {', '.join(shapes)}, by which channels are found; give `example`, the "
                f"arguments of forward: {type(error).__name__}: {error}"
            ) from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    for module, _ in training:
        module.training = False
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def _try(inserted: Inserted, outputs: list[Any]) -> None:
    """ValueError, which names the block, where an attention refuses what the block returns."""

    def on_meta(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    name, attention, _, module = inserted
    state = {key: on_meta(tensor) for key, tensor in chain(module.named_parameters(), module.named_buffers())}
    for output in outputs:
        first = output[0] if type(output) is tuple and isinstance(inserted.channels, int) else output
        maps = [*first.values()] if isinstance(first, Mapping) else first
        try:
            with torch.no_grad():
                torch.func.functional_call(module, state, (torch.utils._pytree.tree_map_only(Tensor, on_meta, maps),))
        except ValueError as error:
            raise ValueError(f"{attention} behind {name}, which returns {_shape(first)}: {error}") from error
        except Exception:  # a module of the caller's that takes no such tensors: a real call tells
            return


def _check(model: nn.Module, blocks: Mapping[str, nn.Module], done: list[Inserted], arguments: tuple) -> None:
    """ValueError unless each attention runs as often as its block: some blocks call each of their children."""
    attentions = {f"{inserted.name}.{CHILD}": inserted.module for inserted in done}
    calls = _outputs(model, {**blocks, **attentions}, arguments)
    for name in blocks:
        inner, outer = len(calls[f"{name}.{CHILD}"]), len(calls[name])
        if inner != outer:
            raise ValueError(f"{name} calls its children by itself: its attention ran {inner} times for {outer} of it")
