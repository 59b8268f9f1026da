"""Layers for Hugging Face's `kernels`, whose `kernelize` puts their forward on the modules of a model.

A layer has no state: its forward reads the parameters and options of the module that it is put on, by the names that
the authors' modules and this package's have, and calls none of the children.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..cfsam.functional import cfsam
from ..cfsam.module import CFSAM as _CFSAM
from ..core.module import affine
from ..interaction.functional import aggressive_conv_pooling, conceptual_attention
from ..interaction.module import AggressiveConvPooling as _AggressiveConvPooling
from ..interaction.module import ConceptualAttention as _ConceptualAttention
from ..lga.functional import local_global_attention
from ..lga.reference import Branch, Separable
from ..scsa.functional import scsa

# No layer may have members but these two: `kernels` checks it.


class SCSA(nn.Module):
    """`fastattn.SCSA.forward`."""

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, x: Tensor) -> Tensor:
        convs = [self.local_dwc, self.global_dwc_s, self.global_dwc_m, self.global_dwc_l]
        qkv = [self.q, self.k, self.v]
        recombination = self.down_sample_mode == "recombination"
        return scsa(
            x,
            [conv.weight for conv in convs],
            [conv.bias for conv in convs],
            (self.norm_h.weight, self.norm_h.bias),
            (self.norm_w.weight, self.norm_w.bias),
            (self.norm.weight, self.norm.bias),
            [layer.weight for layer in qkv],
            [layer.bias for layer in qkv] if self.qkv_bias else None,
            head_num=self.head_num,
            window_size=self.window_size,
            down_sample_mode=self.down_sample_mode,
            gate_layer=_gate(self),
            conv_d_weight=self.conv_d.weight if recombination else None,
            attn_drop_ratio=self.attn_drop.p if hasattr(self, "attn_drop") else self.attn_drop_ratio,
            training=self.training,
        )


class LocalGlobalAttention(nn.Module):
    """`fastattn.LocalGlobalAttention.forward`; the author's module, which says nothing of it, contracts as released."""

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, x: Tensor) -> Tensor:
        branches = []
        if hasattr(self, "local_convs"):
            branches.append(Branch([*map(_separable, self.local_convs)], self.learnable_alpha_local.reshape(1)))
        if hasattr(self, "global_conv"):
            branches.append(Branch([_separable(self.global_conv)], self.learnable_alpha_global.reshape(1)))
        return local_global_attention(
            x,
            [*map(_separable, self.multi_scale_convs)],
            affine(self.scale_attention[0]),
            self.position_encoding,
            branches,
            affine(self.out_conv),
            num_heads=self.num_heads,
            contraction=getattr(self, "contraction", "released"),
        )


class CFSAM(nn.Module):
    """`fastattn.CFSAM.forward`."""

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        return cfsam(maps, *_CFSAM.operands(self), num_parts=self.num_parts, num_heads=self.num_heads)


class AggressiveConvPooling(nn.Module):
    """`fastattn.AggressiveConvPooling.forward`."""

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, x: Tensor) -> Tensor:
        operands = _AggressiveConvPooling.operands(self)
        return aggressive_conv_pooling(x, *operands, pool_size=self.pool_size, aggregate=self.aggregate)


class ConceptualAttention(nn.Module):
    """`fastattn.ConceptualAttention.forward`."""

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, x: Tensor) -> Tensor:
        return conceptual_attention(x, *_ConceptualAttention.operands(self))


def _gate(module: Any) -> str:
    """Return the gate's name, which the authors' module keeps as a layer alone."""
    if hasattr(module, "sa_gate"):
        return "softmax" if isinstance(module.sa_gate, nn.Softmax) else "sigmoid"
    return module.gate_layer


def _separable(module: Any) -> Separable:
    return Separable(affine(module[0]), affine(module[1]))
