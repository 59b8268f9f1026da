"""Processes beside one another: forked ones, spawned ones, eight on two cores."""

import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fastattn
from tests.helpers import DEVICE, few

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(DEVICE != "cpu", reason="of the CPU's path")]
MODULES = {
    "scsa": lambda: (fastattn.SCSA(64, window_size=2), torch.randn(2, 64, 28, 28)),
    "lga": lambda: (fastattn.LocalGlobalAttention(16, 4), torch.randn(2, 16, 28, 28)),
    "acp": lambda: (fastattn.AggressiveConvPooling(32), torch.randn(2, 32, 28, 28)),
    "cat": lambda: (fastattn.ConceptualAttention(32), torch.randn(2, 196, 32)),
    "cfsam": lambda: (fastattn.CFSAM([8, 16], 32, num_heads=2), [torch.randn(2, 8, 16, 16), torch.randn(2, 16, 8, 8)]),
}


def make(name):
    torch.manual_seed(0)
    return MODULES[name]()


def total(outs):
    return sum(out.sum() for out in outs) if isinstance(outs, list) else outs.sum()
