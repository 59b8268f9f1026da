"""Ultralytics (8.4): attentions in a model's YAML, and in a model that is loaded.

Training builds a model anew from its YAML, and so does resuming it: what `insert` puts in is written there, and a
checkpoint that holds an attention registers these names when it is loaded.
"""

import copy
from contextlib import nullcontext
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..cfsam.module import CFSAM as _CFSAM
from ..core.backends import use_backend
from ..core.torch_state import tracing_state
from ..lga.module import LocalGlobalAttention as _LGA
from ..scsa.module import PCSA as _PCSA
from ..scsa.module import SCSA as _SCSA
from ..scsa.module import SMSA as _SMSA
from . import insert as inserting

OLDEST = (8, 4)
KEY = "fastattn"  # of the attentions that `insert` put in, in a model's YAML


class _Layer:
    """A module of ours as a layer: what exports by tracing gets PyTorch's own operators, which run anywhere."""

    def forward(self, x: Any) -> Any:
        with use_backend("reference") if tracing_state() is not None else nullcontext():
            return super().forward(x)  # type: ignore[misc]


class _Windowed(_Layer):
    """Pools a map that is smaller than the window by its shorter side: Ultralytics probes models with tiny images."""

    window_size: int

    def forward(self, x: Tensor) -> Tensor:
        side = min(x.shape[2:])
        if side >= self.window_size:
            return super().forward(x)
        twin = copy.copy(self)
        twin.window_size = side
        return super(_Windowed, twin).forward(x)


class SCSA(_Windowed, _SCSA):
    """SCSA that takes maps of any size."""


class PCSA(_Windowed, _PCSA):
    """PCSA that takes maps of any size."""


class SMSA(_Layer, _SMSA):
    """SMSA that can be exported by tracing."""


class LocalGlobalAttention(_Layer, _LGA):
    """LGA that can be exported by tracing."""


class CFSAM(_Layer, _CFSAM):
    """CFSAM that can be exported by tracing."""


OURS = {"scsa": SCSA, "pcsa": PCSA, "smsa": SMSA, "lga": LocalGlobalAttention, "cfsam": CFSAM}


def _rivals() -> dict[str, Any]:
    from ..models.rivals import RIVALS

    return {name.upper(): rival.make for name, rival in RIVALS.items()}


def _makers() -> dict[str, Any]:
    """What the names in a YAML make, for a number of channels, or for those of several levels."""
    return {made.__name__: made for made in OURS.values()} | _rivals()


class _Registration:
    """Registers the names again where a checkpoint that holds it is loaded."""

    def __reduce__(self) -> Any:
        return _registered, ()


def _registered() -> _Registration:
    register()
    return _Registration()


def _tasks() -> Any:
    """ultralytics.nn.tasks; ImportError where it is missing or too old."""
    try:
        version = import_module("ultralytics").__version__
        tasks = import_module("ultralytics.nn.tasks")
    except ImportError as error:
        raise ImportError("fastattn.integrations.ultralytics needs ultralytics: pip install ultralytics") from error
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise ImportError(f"fastattn.integrations.ultralytics needs ultralytics 8.4 or newer, found {version}")
    return tasks


def register() -> None:
    """Make SCSA, SMSA, PCSA, LocalGlobalAttention, CFSAM and the rivals usable in a model's YAML.

    Channels are those of the layer that a row is `from`, with the width multiple applied already; a row's arguments are
    those that follow: `[-1, 1, SCSA, []]`, `[-1, 1, LocalGlobalAttention, [16]]`. CFSAM is `from` several layers and
    gives their list, of which `Index` takes one map. ImportError without Ultralytics 8.4.
    """
    tasks = _tasks()
    for name, make in _makers().items():
        if not hasattr(tasks, name):
            setattr(tasks, name, _row(name, make))
    if not hasattr(tasks.parse_model, "__wrapped__"):
        tasks.parse_model = _with_channels(tasks.parse_model)


def _row(name: str, make: Any) -> type[nn.Module]:
    """A class that Ultralytics calls with all channels so far, where the row is from, and the row's arguments."""

    def new(cls: Any, channels: list[int], source: int | list[int], *args: Any) -> nn.Module:
        taken = channels[source] if isinstance(source, int) else [channels[i] for i in source]
        return make(taken, *args)

    return type(name, (nn.Module,), {"__new__": new, "_of_fastattn": True, "__module__": __name__})


def _with_channels(parse_model: Any) -> Any:
    """Ultralytics' parser, which gives rows of ours their channels and puts in what `insert` wrote down."""

    @wraps(parse_model)
    def parse(d: dict[str, Any], ch: int, verbose: bool = True) -> Any:
        tasks = _tasks()
        d = copy.deepcopy(d)
        several: dict[int, list[int]] = {}
        ours = False
        for i, row in enumerate(d["backbone"] + d["head"]):
            source, _, name, args = row
            if not getattr(getattr(tasks, name, None), "_of_fastattn", False):
                continue
            ours = True
            row[3] = ["ch", source, *args]  # the parser's own name for all channels so far
            if isinstance(source, list):
                several[i], row[0] = source, source[-1]
        layers, save = parse_model(d, ch, verbose)
        for i, sources in several.items():
            layers[i].f = sources
            save = sorted({*save, *(source % i for source in sources if source != -1)})
        for record in d.get(KEY, ()):
            block = layers.get_submodule(record["name"].removeprefix("model."))
            make, kind = by_name(record["attention"])
            attention = make(record["channels"], **record["kwargs"])
            inserting.attach(block, attention, None, kind)
        if ours or KEY in d:
            layers._fastattn = _Registration()
        return layers, save

    return parse


def by_name(attention: str) -> tuple[Any, str]:
    """What makes an attention that goes by name, as a layer."""
    make, kind = inserting.by_name(attention)
    return OURS.get(attention, make), kind


def is_model(model: nn.Module) -> bool:
    """Whether a model is one of Ultralytics', as its user has it or the network in it."""
    return isinstance(model, (_tasks().BaseModel, import_module("ultralytics.engine.model").Model))


def insert(
    model: Any, where: inserting.Where, attention: Any = None, *, example: Any = None, **kwargs: Any
) -> list[inserting.Inserted]:
    """`fastattn.insert` in a YOLO or its network, written down in its YAML; attentions by name alone."""
    from ..models import attentions

    register()
    network = _network(model)
    if example is None:
        like = next(network.parameters())
        example = torch.zeros(1, network.yaml.get("channels", 3), 320, 320, dtype=like.dtype, device=like.device)
    done = inserting.insert_by(by_name, network, where, attention, example, kwargs)
    unknown = {each.attention for each in done} - {*attentions()}
    if unknown:
        for each in done:
            inserting.detach(network.get_submodule(each.name))
        raise ValueError(f"Ultralytics builds models anew, by names that fastattn knows: {', '.join(unknown)} is none")
    network.yaml.setdefault(KEY, []).extend(
        {"name": name, "attention": known, "channels": channels, "kwargs": kwargs} for name, known, channels, _ in done
    )
    network.model._fastattn = _Registration()
    if model is not network and not model.ckpt:
        model.ckpt = {"model": network}  # so that training starts from this network
    return done


def remove(model: Any) -> list[str]:
    """`fastattn.remove` in a YOLO or its network, and in its YAML."""
    network = _network(model)
    network.yaml.pop(KEY, None)
    return inserting.detach_all(network)


def _network(model: Any) -> Any:
    return model if isinstance(model, _tasks().BaseModel) else model.model
