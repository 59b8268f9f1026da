"""The registered operations `fastattn::{scsa,smsa,pcsa}_{forward,backward}`, and what their backends do not take.

`params` is one flat list: the weights of the four convolutions, their four biases, weight and bias of norm_h
and of norm_w (SMSA), then weight and bias of norm, the weights of q, k and v, and their biases if there are
any (PCSA).

`saved` is what backward needs besides x and params: float32 (B, floats per sample, which the backend decides),
or (0,) where nothing is saved. Backward returns the parameters' gradients as one tensor, in the order of params.
"""

from typing import Any

import torch
from torch import Tensor

from ..core.backends import declare, extension_reasons, fastest
from ..core.operation import FlatOperation, Servers
from ..core.parameters import common_dtype
from . import native, reference

_SERVERS = Servers("scsa.call", native=native)  # a backend's module: forward, backward and saved_size


class Operation(FlatOperation):
    """One of the three; its options are the gate, PCSA's before it, then the output's dtype and the backend, "auto"
    where that is chosen when it runs."""

    def __init__(self, name: str, *, spatial: bool, channel: bool) -> None:
        self.spatial, self.channel = spatial, channel
        options = ", int head_num, int window_size, str down_sample_mode" * channel
        super().__init__(name, f"{options}, str gate_layer, ScalarType out_dtype, str backend")

    def server_for(self, options):
        return _SERVERS[options[-1]]

    def server_of(self, x, options):
        *_, out_dtype, backend = options
        if backend != "auto":
            return self.server_for(options)
        backend = fastest(self.name, x)  # in a program that torch.export made
        if backend == "reference" or (backend == "native" and out_dtype is not x.dtype):  # which it writes
            return None
        return _SERVERS[backend]

    def serve(self, server, x, params, options, save):
        *options, out_dtype, _ = options
        return server.forward(self, x, params, tuple(options), out_dtype, save)

    def serve_backward(self, server, grad_out, x, saved, params, options, need_x, need_params):
        *options, _, _ = options
        return server.backward(self, grad_out, x, saved, params, tuple(options), need_x, need_params)

    def saved(self, server, x, params, options):
        *options, _, _ = options
        size = server.saved_size(self.spatial, self.channel, x.shape, tuple(options))
        return x.new_empty((x.shape[0], size), dtype=torch.float32)

    def out_dtype(self, x, options):
        return options[-2]

    def grads_dtype(self, x, params):
        return common_dtype(x, params)

    def definition(self, x: Tensor, params, gate_layer: str, **options: Any) -> Tensor:
        if self.spatial:
            x = reference.smsa(x, params[:4], params[4:8], params[8:10], params[10:12], gate_layer=gate_layer)
            params = params[12:]
        if self.channel:
            names = ("head_num", "window_size", "down_sample_mode")
            known = {name: options[name] for name in names}
            x = reference.pcsa(x, params[:2], params[2:5], params[5:] or None, gate_layer=gate_layer, **known)
        return x


SCSA = Operation("scsa", spatial=True, channel=True)
SMSA = Operation("smsa", spatial=True, channel=False)
PCSA = Operation("pcsa", spatial=False, channel=True)


def facts(x: Tensor, *, down_sample_mode: str = "", attn_drop_ratio: float = 0.0, training: bool = False, **_) -> tuple:
    """Return what the limits are about: whether `recombination` is asked for, and dropout takes place."""
    return down_sample_mode == "recombination", bool(training and attn_drop_ratio)


def limits(recombination: bool = False, dropout: bool = False) -> list[str]:
    """Return what no fast backend serves."""
    reasons = ['down_sample_mode="recombination" has no fast path'] * recombination
    return reasons + ["dropout on the attention while training has no fast path"] * dropout


def _native_limits(*known: bool) -> list[str]:
    return extension_reasons() + limits(*known)


for _operation in (SCSA, SMSA, PCSA):
    declare(_operation.name, facts, native=_native_limits, triton=limits, cuda=limits)
