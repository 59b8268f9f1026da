"""What the modules share: their backend, and that their children mean what they say.

An operation reads the parameters of a module's children and calls none of them. That is right as long as they are what
the module made, with its settings and without hooks; otherwise the module runs through its children, by PyTorch's own
operators, so that a wrapper, a hook, a pruned or a quantised layer has its effect.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import call, itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .backends import get_backend
from .reference import Affine
from .torch_state import compile_time_constant

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_RECOMPUTING = (BasePruningMethod, WeightNorm, SpectralNorm)  # hooks that set a parameter before a call
MADE, RECOMPUTED, CHANGED = "made", "recomputed", "changed"
_SETTINGS = {"eps", "stride", "padding", "dilation", "groups", "padding_mode", "num_groups", "approximate", "dim"}


def affine(module: nn.Module) -> Affine:
    """Return a layer's weight and bias."""
    try:  # several times as fast as attributes
        return module._parameters["weight"], module._parameters["bias"]  # type: ignore[return-value]
    except KeyError:  # computed: pruned, parametrized, a wrapper's, a data-parallel replica's
        return module.weight, module.bias  # type: ignore[return-value]


class Holder(nn.Module):
    """A module that holds parameters for the operation of the module that it is in."""


HOLDERS = (nn.Sequential, nn.ModuleList, Holder)
FOREIGN_HOLDERS: set[type] = set()  # the same of other authors, where `accelerate` met them


class _Seen(NamedTuple):
    """A module's children at a look, and where to see that nothing has changed since."""

    holders: list[dict[str, Any]]  # of children, by name
    children: list[nn.Module | None]
    calls: list[nn.Module]  # the same in another order
    kinds: list[type]
    as_made: bool
    hooks: list[dict[int, Any]]
    attributes: list[dict[str, Any]]
    numbers: list[int]  # of attributes: a `forward` of an instance's own is one more
    readers: Sequence[Callable[[Any], Any]]  # of the settings in the first attributes
    settings: list[Any]
    parameters: list[dict[str, nn.Parameter | None]]  # of the module and its children, by name


class FastModule(Holder):
    """A module whose calls a backend serves: the one that `backend` names, or with None that of `get_backend()`."""

    operation: Any
    backend: str | None = None
    _seen: _Seen  # at the last look, where there was one

    def arguments_of(self, x: Any) -> tuple:
        """Return arguments of forward with x, for `explain`."""
        return (x,)

    def _note_children(self) -> None:
        """Note what the children are made as: the end of every constructor."""
        self._made = [_facts(child) for child in _descendants(self)]

    def _is_as_made(self) -> bool:
        """Return whether what children do not show by themselves is as it was made, too: asked after a look at them."""
        return True

    def _runs_through_children(self) -> bool:
        """Return whether a child is not what it was made as; RuntimeError where a fast backend is named."""
        state = self._state_of_children()
        if state != CHANGED and not self._is_as_made():
            state = CHANGED
        if state == RECOMPUTED and not torch.compiler.is_compiling():
            for child in self._seen.calls:
                for hook in child._forward_pre_hooks.values():
                    hook(child, ())
            return False
        if state == MADE:
            return False
        wanted = self.backend or get_backend()
        if wanted not in ("auto", "reference"):
            raise RuntimeError(
                f"backend {wanted!r} cannot serve this {self.operation} call: a child of the module has hooks, or was "
                "replaced, or has other settings, so that it has to be called"
            )
        return True

    @compile_time_constant  # a method: torch 2.11 takes no module as such a function's argument
    def _state_of_children(self) -> str:
        return state_of_children(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}


def state_of_children(module: FastModule) -> str:
    """Return MADE where the children of a module are what they were made as, so that their parameters say all,
    RECOMPUTED where hooks compute some of these before a call, as pruning does, and else CHANGED."""
    seen = module.__dict__.get("_seen")
    if (
        seen is None
        or [*chain.from_iterable(map(dict.values, seen.holders))] != seen.children
        or [*map(type, seen.children)] != seen.kinds
        or [*map(call, seen.readers, seen.attributes)] != seen.settings
        or [*map(len, seen.attributes)] != seen.numbers
    ):
        seen = module.__dict__["_seen"] = look(module)
    if not seen.as_made:
        return CHANGED
    if not any(seen.hooks):
        return MADE
    before = [child._forward_pre_hooks for child in seen.calls]
    others = [hooks for hooks in seen.hooks if hooks and not any(hooks is known for known in before)]
    recompute = all(isinstance(hook, _RECOMPUTING) for hooks in before for hook in hooks.values())
    return CHANGED if others or not recompute else RECOMPUTED


def look(module: FastModule) -> _Seen:
    """Look at the children of a module, whatever was seen before."""
    children = [*_descendants(module)]
    holders = [module, *filter(_holds, children)]
    attributes = sorted(map(vars, children), key=_SETTINGS.isdisjoint)  # first of those with settings
    readers = [itemgetter(*_SETTINGS & own.keys()) for own in attributes if not _SETTINGS.isdisjoint(own)]
    return _Seen(
        [holder._modules for holder in holders],
        [child for holder in holders for child in holder._modules.values()],
        children,
        [type(child) for holder in holders for child in holder._modules.values()],
        [_facts(child) for child in children] == module._made,
        [vars(child)[name] for child in children for name in _HOOKS],
        attributes,
        [*map(len, attributes)],
        readers,
        [*map(call, readers, attributes)],
        [vars(held)["_parameters"] for held in (module, *children)],
    )


def _descendants(module: nn.Module) -> Iterator[nn.Module]:
    """Return the children, and those of children that hold others for the operation, but nothing inside of a layer."""
    modules: dict[str, Any] = module._modules
    for child in modules.values():
        yield child
        if _holds(child):
            yield from _descendants(child)


def _holds(child: nn.Module) -> bool:
    return isinstance(child, HOLDERS) or type(child) in FOREIGN_HOLDERS


def _facts(child: nn.Module) -> tuple:
    """Return the class of a child, whether parametrized or not, whether its forward is its own, and its settings."""
    kind = type(child).__mro__[1] if is_parametrized(child) else type(child)
    return kind, "forward" in vars(child), *(getattr(child, name, None) for name in sorted(_SETTINGS))
