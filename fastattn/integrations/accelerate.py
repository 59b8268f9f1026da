"""Modules that somebody else wrote and that this package has: found by structure, checked, replaced in place.

What replaces a module shares all of its state, the dictionaries of children, parameters and hooks themselves: names in
state dicts, tensors, optimizers and averages stay what they are, and what is added or replaced later is seen by both.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.backends import mkldnn

from ..core.checks import LIMITS
from ..core.module import FOREIGN_HOLDERS, HOLDERS, FastModule
from ..lga.module import LocalGlobalAttention, arguments_told_by
from ..lga.reference import CONTRACTIONS
from ..scsa.module import PCSA, SCSA, SMSA
from ..zoo import CBAM, ECA, EffectiveSEModule, SEModule
from ..zoo.module import Gate, step_of

STATE = tuple(vars(nn.Module()))  # what every module keeps about itself: children, parameters, hooks, training
OWN = "backend", "operation", "_slots"  # attributes of our classes, whatever a module calls so
GATES = "SEModule", "SqueezeExcite", "EffectiveSEModule", "EcaModule", "CbamModule"  # timm's
NAMES = "SCSA", "SMSA", "PCSA", "LocalGlobalAttention", *GATES


class Finding(NamedTuple):
    """A module that was looked at: its name in the model, its class, what replaced it if anything did, and else why
    nothing did."""

    name: str
    kind: str
    replacement: str | None
    reason: str = ""

    def __str__(self) -> str:
        what = f"replaced by fastattn.{self.replacement}" if self.replacement else f"left as it is: {self.reason}"
        return f"{self.name} ({self.kind}): {what}"


class Report(list[Finding]):
    """What `accelerate` found, in the model's order; printed, one line each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing found that fastattn has"


class Accelerated(FastModule):
    """One of this package's modules on the state of the module that it stands for.

    Where a child is not what it was, or is watched by a hook, that module's own forward runs.
    """

    _original: tuple[nn.Module]  # in a tuple, so that it is no child

    @classmethod
    def stands_for(cls) -> str:
        """The public name of what it is."""
        return cls.__mro__[2].__name__

    def _through_children(self, x: Tensor) -> Tensor:
        (original,) = self._original
        original.training = self.training
        return original.forward(x)


class AcceleratedSCSA(Accelerated, SCSA):
    """SCSA on another SCSA's state."""


class AcceleratedSMSA(Accelerated, SMSA):
    """SMSA on another SMSA's state."""


class AcceleratedPCSA(Accelerated, PCSA):
    """PCSA on another PCSA's state."""


class AcceleratedLGA(Accelerated, LocalGlobalAttention):
    """LGA on another LGA's state."""


class AcceleratedSE(Accelerated, SEModule):
    """SE on another SE's state, whatever its two layers are called."""

    _slots: tuple[tuple[str, str], ...] = ()

    def _params(self) -> list[Tensor]:
        return [getattr(getattr(self, name), kind) for name, kind in self._slots] or super().parameters_in_order()

    def parameters_in_order(self) -> list[Tensor]:
        return self._params()


class AcceleratedEffectiveSE(Accelerated, EffectiveSEModule):
    """Effective SE on another's state."""


class AcceleratedECA(Accelerated, ECA):
    """ECA on another ECA's state."""


class AcceleratedCBAM(Accelerated, CBAM):
    """CBAM on another CBAM's state."""


class Candidate(NamedTuple):
    """What a module may be: one of this package's, by its arguments, and the slots of its parameters in order."""

    kind: type[Accelerated]
    arguments: dict[str, Any]
    slots: tuple[tuple[str, str], ...] | None = None  # the names of children and kinds of their parameters


class Unfit(Exception):
    """Why a module is not replaced."""


def accelerate(model: nn.Module) -> Report:
    """Replace, in place, modules of other authors that this package has by its own, on the same parameters.

    Found by their layers are SCSA, SMSA and PCSA, whatever their children are called, by its state dict LGA, as
    published ("released") or as in its paper, and by their classes timm's SE, effective SE, ECA and CBAM. Each is
    compared with its replacement on random inputs and parameters: output and gradients, evaluating and training. Names
    in the state dict, parameters, hooks, dtype, device and training mode stay. Returns what was replaced, what was not
    and why; `restore` undoes it.
    """
    report = Report()
    made: dict[int, Accelerated] = {}
    looked_at: set[int] = set()

    def look(name: str, module: nn.Module) -> None:
        if isinstance(module, FastModule) or id(module) in looked_at:
            return
        looked_at.add(id(module))
        kind = type(module).__name__
        try:
            candidates = [*_candidates(module)]
            if candidates and module is model:
                raise Unfit("it is the model itself: call this with what it is in, nn.Sequential say")
            if candidates:
                made[id(module)] = replacement = _replacement(module, candidates)
                report.append(Finding(name, kind, replacement.stands_for()))
                return
            if kind in NAMES:
                raise Unfit("it has not the layers of its name")
        except Unfit as unfit:
            report.append(Finding(name or "model", kind, None, str(unfit)))
        for key, child in module.named_children():
            look(f"{name}.{key}" if name else key, child)

    look("", model)
    _put(model, made)
    return report


def restore(model: nn.Module) -> list[str]:
    """Put back, in place, the modules that `accelerate` replaced, with the tensors that they have now; the names."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Accelerated)}
    originals = {}
    for module in found.values():
        (original,) = module._original
        vars(original).update({key: vars(module)[key] for key in STATE})
        originals[id(module)] = original
    _put(model, originals)
    return [*found]


def _put(model: nn.Module, others: dict[int, Any]) -> None:
    """Put modules in the places of others, by identity."""
    for parent in [*model.modules()]:
        for name, child in parent._modules.items():
            if id(child) in others:
                parent._modules[name] = others[id(child)]


def _candidates(module: nn.Module) -> Iterator[Candidate]:
    """What a module may be by its layers; Unfit where it has them and more."""
    if type(module).__name__ in GATES:
        with suppress(AttributeError):  # of the same name, and another's
            yield from _as_gate(module)
        return
    yield from _as_scsa(module)
    yield from _as_lga(module)


def _as_gate(module: Any) -> Iterator[Candidate]:
    kind = type(module).__name__
    layers = {name: layer for name, layer in module.named_children() if not isinstance(layer, nn.Identity)}
    if kind == "CbamModule":
        yield from _as_cbam(module)
        return
    acts = [layer for layer in layers.values() if step_of(layer)]
    convs = [name for name, layer in layers.items() if isinstance(layer, nn.Conv1d | nn.Conv2d)]
    if len(acts) + len(convs) < len(layers) or len(acts) != len(convs) or getattr(module, "add_maxpool", False):
        return
    if kind == "EcaModule":
        if len(convs) == 1 and module.conv.bias is None and step_of(acts[0]) == "sigmoid":
            yield Candidate(AcceleratedECA, {"kernel_size": module.conv.kernel_size[0]})
    elif kind == "EffectiveSEModule":
        if len(convs) == 1:
            yield Candidate(
                AcceleratedEffectiveSE, {"channels": module.fc.in_channels, "gate_layer": lambda: copy.copy(acts[0])}
            )
    elif len(convs) == 2:
        first, second = (layers[name] for name in convs)
        arguments = {
            "channels": first.in_channels,
            "rd_channels": first.out_channels,
            "bias": first.bias is not None,
            "act_layer": lambda: copy.copy(acts[0]),
            "gate_layer": lambda: copy.copy(acts[1]),
        }
        kinds = ("weight", "bias") if first.bias is not None else ("weight",)
        if (first.bias is None) == (second.bias is None):
            yield Candidate(AcceleratedSE, arguments, tuple((name, kind) for name in convs for kind in kinds))


def _as_cbam(module: Any) -> Iterator[Candidate]:
    channel, conv = module.channel, module.spatial.conv
    steps = [step_of(layer) for layer in (channel.act, channel.gate, module.spatial.gate)]
    if steps != ["relu", "sigmoid", "sigmoid"] or not isinstance(conv.bn, nn.BatchNorm2d):
        return
    FOREIGN_HOLDERS.update(map(type, (channel, module.spatial, conv, conv.bn)))
    arguments = {
        "channels": channel.fc1.in_channels,
        "rd_channels": channel.fc1.out_channels,
        "spatial_kernel_size": conv.conv.kernel_size[0],
        "mlp_bias": channel.fc1.bias is not None,
    }
    yield Candidate(AcceleratedCBAM, arguments)


def _as_lga(module: nn.Module) -> Iterator[Candidate]:
    shapes = {name: tensor.shape or (1,) for name, tensor in module.state_dict().items()}  # alphas are scalars there
    if not {"scale_attention.0.weight", "out_conv.weight", "position_encoding"} <= shapes.keys():
        return
    arguments = arguments_told_by(shapes)
    if "num_heads" not in arguments:
        return
    with torch.device("meta"):
        twin = LocalGlobalAttention(**arguments)
    if {name: tensor.shape for name, tensor in twin.state_dict().items()} != shapes:
        raise Unfit("its parameters are those of LGA and others, or of other sizes")
    yield from (Candidate(AcceleratedLGA, {**arguments, "contraction": kind}) for kind in reversed(CONTRACTIONS))


def _as_scsa(module: nn.Module) -> Iterator[Candidate]:
    layers = dict(_layers(module))

    def of(kind: type[nn.Module], **settings: Any) -> list[str]:
        def fits(layer: nn.Module) -> bool:
            return isinstance(layer, kind) and all(getattr(layer, key) == value for key, value in settings.items())

        return [name for name, layer in layers.items() if fits(layer)]

    def depthwise(names: Iterable[str]) -> list[str]:
        return [name for name in names if layers[name].groups == layers[name].in_channels == layers[name].out_channels]

    convs, qkv = depthwise(of(nn.Conv1d, stride=(1,))), depthwise(of(nn.Conv2d, kernel_size=(1, 1), stride=(1, 1)))
    spatial_norms, channel_norms = of(nn.GroupNorm, num_groups=4), of(nn.GroupNorm, num_groups=1)
    spatial = len(convs) == 4 and len(spatial_norms) in (1, 2)
    channel = len(qkv) == 3 and len(channel_norms) == 1
    if not spatial and not channel:
        return
    arguments: dict[str, Any] = {}
    slots: tuple[tuple[str, str], ...] = ()
    if spatial:
        arguments["dim"] = layers[spatial_norms[0]].num_channels
        arguments["group_kernel_sizes"] = [layers[name].kernel_size[0] for name in convs]
        norms = sorted(spatial_norms, key=_axis) if len(spatial_norms) == 2 else spatial_norms * 2
        slots += *((name, "weight") for name in convs), *((name, "bias") for name in convs)
        slots += tuple((name, kind) for name in norms for kind in ("weight", "bias"))
    if channel:
        biases = {layers[name].bias is not None for name in qkv}
        arguments |= _channel_arguments(module, layers) | {"qkv_bias": True in biases}
        arguments["dim"] = layers[channel_norms[0]].num_channels
        ordered = sorted(qkv, key=_letter)
        slots += *((channel_norms[0], kind) for kind in ("weight", "bias")), *((name, "weight") for name in ordered)
        slots += tuple((name, "bias") for name in ordered if True in biases)
    kind = AcceleratedSCSA if spatial and channel else AcceleratedSMSA if spatial else AcceleratedPCSA
    others = module.state_dict().keys() - {f"{name}.{parameter}" for name, parameter in slots}
    if others:
        raise Unfit(f"it has the layers of {kind.stands_for()} and others: {', '.join(sorted(others)[:4])}")
    for gate in ("softmax", "sigmoid") if of(nn.Softmax) else ("sigmoid",):
        yield Candidate(kind, {**arguments, "gate_layer": gate}, slots)


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The layers of a module and of the containers in it, by their names."""
    for name, child in module.named_children():
        if type(child) in HOLDERS:
            yield from _layers(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _axis(name: str) -> bool:
    """Whether a normalisation's name tells that it is that of the columns."""
    return name.rpartition("_")[2] in ("w", "width", "x")


def _letter(name: str) -> str:
    """The letter of a query's, a key's or a value's layer; nothing where its name tells none."""
    found = [letter for letter in "qkv" if letter in name.lower().split(".")[-1]]
    return {"q": "1", "k": "2", "v": "3"}[found[0]] if len(found) == 1 else ""


def _channel_arguments(module: nn.Module, layers: dict[str, Any]) -> dict[str, Any]:
    """What PCSA's parameters do not tell, from a module's attributes and its layers without parameters."""

    def attribute(*names: str) -> Any:
        return next((vars(module)[name] for name in names if name in vars(module)), None)

    pools = [layer for layer in layers.values() if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d)]
    window = attribute("window_size", "window", "pool_size")
    if window is None and pools:
        window = pools[0].kernel_size
    if any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in layers.values()):
        window = -1
    window = window[0] if isinstance(window, tuple) else window
    drops = [layer.p for layer in layers.values() if isinstance(layer, nn.Dropout)]
    return {
        "head_num": attribute("head_num", "num_heads", "heads") or 1,
        "window_size": 7 if window is None else window,
        "down_sample_mode": "max_pool" if pools and isinstance(pools[0], nn.MaxPool2d) else "avg_pool",
        "attn_drop_ratio": drops[0] if drops else 0.0,
    }


def _replacement(module: nn.Module, candidates: list[Candidate]) -> Accelerated:
    """The first candidate that computes what a module computes; Unfit if none does."""
    dtype = next(module.parameters()).dtype
    if "forward" in vars(module):
        raise Unfit("its forward was replaced on the instance")
    if dtype not in LIMITS:
        raise Unfit(f"its parameters are {dtype}")
    reasons = []
    for candidate in candidates:
        try:
            for precision in (torch.promote_types(dtype, torch.float32), dtype):  # the strict one first
                twin = _independent(module).to(precision)
                _compare(twin, _made(twin, candidate))
            return _made(module, candidate)
        except Unfit as unfit:
            reasons.append(str(unfit))
        except Exception as error:  # whatever somebody else's module raises
            reasons.append(f"{type(error).__name__}: {error}")
    raise Unfit("; ".join(dict.fromkeys(reasons)))


def _made(module: nn.Module, candidate: Candidate) -> Accelerated:
    """A candidate on a module's state; ValueError for arguments that do not fit one another."""
    with torch.device("meta"):
        made: Any = candidate.kind(**candidate.arguments)
    shapes = [parameter.shape for parameter in made._params()] if candidate.slots else []
    vars(made).update({key: vars(module)[key] for key in STATE})
    for key, value in vars(module).items():  # which frameworks read
        if key not in OWN:
            vars(made).setdefault(key, value)
    vars(made)["_original"] = (module,)
    if candidate.slots:
        made._slots = candidate.slots
        if [parameter.shape for parameter in made._params()] != shapes:
            raise ValueError("its parameters have other shapes")
    made._note_children()
    return made


def _independent(module: nn.Module) -> nn.Module:
    """A copy without hooks and with random parameters, so that no one or zero hides a difference."""
    twin = copy.deepcopy(module)
    generator = torch.Generator("cpu").manual_seed(0)
    for part in twin.modules():
        for key, value in vars(part).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                value.clear()
    for name, parameter in twin.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device="cpu")
        if parameter.dim() > 1:
            noise /= parameter[0].numel() ** 0.5
        with torch.no_grad():
            parameter.copy_(noise * 0.2 + 1 if "norm" in name and name.endswith("weight") else noise)
        parameter.requires_grad_()
    return twin


def _compare(module: nn.Module, ours: Accelerated) -> None:
    """Unfit unless two modules on the same parameters compute the same up to rounding, gradients included."""
    like = next(ours.parameters())
    window = getattr(ours, "window_size", 0)
    sides = (2 * window + 1, 3 * window + 2) if window > 0 else (16, 32)  # a remainder; what resizes alike by any rule
    generator = torch.Generator("cpu").manual_seed(1)
    x, grad_out = (
        torch.randn(2, _channels(ours), *sides, generator=generator, device="cpu").to(like) for _ in range(2)
    )
    # oneDNN may not come back from float16 convolutions in one dimension
    onednn = like.dtype != torch.float16
    random = bool(getattr(ours, "attn_drop_ratio", 0.0))  # where it is trained
    for training in (False,) if random else (False, True):
        module.train(training)
        ours.train(training)
        with mkldnn.flags(enabled=onednn, allow_tf32=None):
            expected, found = (_pass(forward, [*ours.parameters()], x, grad_out) for forward in (module.forward, ours))
        errors, norms = ([*map(float, map(torch.norm, tensors))] for tensors in (_less(expected, found), expected))
        scales = [*norms[:2], *[max(norms[2:])] * len(norms[2:])]  # a gradient may be zero but for rounding
        worst = max(error / max(scale, 1e-12) for error, scale in zip(errors, scales, strict=True))
        if not worst <= LIMITS[like.dtype]:
            mode = "training" if training else "evaluating"
            raise Unfit(f"{mode}, it differs from {ours.stands_for()} by {worst:.1e} of what it computes")


def _channels(ours: Any) -> int:
    if isinstance(ours, Gate):
        return ours.channels or 32
    return ours.embed_dim if isinstance(ours, LocalGlobalAttention) else ours.dim


def _less(ones: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    return [one - other for one, other in zip(ones, others, strict=True)]


def _pass(forward: Any, parameters: list[nn.Parameter], x: Tensor, grad_out: Tensor) -> list[Tensor]:
    """The output, the gradient of x and those of the parameters, in float64."""
    x = x.clone().requires_grad_()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        out = forward(x)
        if not isinstance(out, Tensor) or out.shape != grad_out.shape:
            raise Unfit("it returns no map of its input's shape")
        grads = torch.autograd.grad(out, [x, *parameters], grad_out, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip([x, *parameters], grads, strict=True)]
    return [tensor.detach().double() for tensor in (out, *found)]
