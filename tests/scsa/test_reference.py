"""The eager reference against the paper's formulas spelled out, and against finite differences."""

import subprocess
import sys

import pytest
import torch

from fastattn import reference
from fastattn.functional import scsa as functional_scsa
from tests.helpers import draw, make, run

NORM = 1e-12  # float64


def group_norm(x, groups, weight, bias):
    """Normalise x (B, C, ...) over each group of channels and all that follows."""
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normal = (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return normal * weight.view(shape) + bias.view(shape)


def spelled_out_smsa(module, x):
    """SMSA by loops over channels and taps."""
    gates = []
    for mean, norm in ((x.mean(3), module.norm_h), (x.mean(2), module.norm_w)):
        convolved = torch.zeros_like(mean)
        convs = (module.local_dwc, module.global_dwc_s, module.global_dwc_m, module.global_dwc_l)
        group, length = x.shape[1] // 4, mean.shape[2]
        for channel in range(x.shape[1]):
            conv, inner = convs[channel // group], channel % group
            size = conv.weight.shape[2]
            for position in range(length):
                convolved[:, channel, position] = conv.bias[inner]
                for tap in range(size):
                    source = position + tap - size // 2
                    if 0 <= source < length:
                        convolved[:, channel, position] += conv.weight[inner, 0, tap] * mean[:, channel, source]
        logits = group_norm(convolved, 4, norm.weight, norm.bias)
        if module.gate_layer == "softmax":
            gates.append(logits.exp() / logits.exp().sum(2, keepdim=True))
        else:
            gates.append(1 / (1 + (-logits).exp()))
    return x * gates[0][:, :, :, None] * gates[1][:, :, None, :]


def pooled(module, s):
    """Pool by loops over windows."""
    window = module.window_size
    if window == -1:
        return s.mean((2, 3), keepdim=True)
    rows, columns = s.shape[2] // window, s.shape[3] // window
    y = s.new_empty(*s.shape[:2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            patch = s[:, :, row * window : (row + 1) * window, column * window : (column + 1) * window].flatten(2)
            if module.down_sample_mode == "recombination":
                y[:, :, row, column] = patch.flatten(1) @ module.conv_d.weight.flatten(1).T
            else:
                y[:, :, row, column] = patch.mean(2) if module.down_sample_mode == "avg_pool" else patch.amax(2)
    return y


def spelled_out_pcsa(module, s):
    """PCSA by loops over heads, with the mean over pixels taken before the product with A."""
    y = group_norm(pooled(module, s), 1, module.norm.weight, module.norm.bias).flatten(2)
    q, k, v = (
        y * c.weight.view(-1, 1) + (0 if c.bias is None else c.bias.view(-1, 1)) for c in (module.q, module.k, module.v)
    )
    size = s.shape[1] // module.head_num
    logits = []
    for head in range(module.head_num):
        part = slice(head * size, (head + 1) * size)
        scores = (q[:, part, None] * k[:, None, part]).sum(-1) / size**0.5
        attention = scores.exp() / scores.exp().sum(2, keepdim=True)
        logits.append((attention @ v[:, part].mean(2, keepdim=True)).squeeze(2))
    logits = torch.cat(logits, 1)
    gate = logits.softmax(1) if module.gate_layer == "softmax" else logits.sigmoid()
    return gate[:, :, None, None] * s


CASES = {
    "default": {},
    "softmax gates": {"gate_layer": "softmax"},
    "heads and bias": {"head_num": 4, "qkv_bias": True},
    "remainder rows and columns": {"window_size": 3},
    "global average": {"window_size": -1, "head_num": 2},
    "max pooling with a remainder": {"down_sample_mode": "max_pool", "window_size": 4},
    "recombination with a remainder": {
        "down_sample_mode": "recombination",
        "window_size": 3,
        "qkv_bias": True,
    },
    "kernels out of order": {"group_kernel_sizes": (7, 1, 11, 3)},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_formulas_written_out(case):
    module, x = make("scsa", 8, dtype=torch.float64, **CASES[case]), draw(2, 8, 8, 10, dtype=torch.float64)
    expected = spelled_out_pcsa(module, spelled_out_smsa(module, x))
    got = run(module, x, torch.ones_like(x), "reference")
    assert (got["out"] - expected).norm() <= NORM * expected.norm()
    gradients = torch.autograd.grad(expected.sum(), list(module.parameters()))
    largest = max(gradient.norm() for gradient in gradients)
    for (name, _), gradient in zip(module.named_parameters(), gradients, strict=True):
        assert (got[name] - gradient).norm() <= 1e-10 * largest, name


@pytest.mark.parametrize("case", CASES)
def test_gradients_by_finite_differences(case):
    options = {**CASES[case], "window_size": CASES[case].get("window_size", 4)}
    module, x = (
        make("scsa", 4, dtype=torch.float64, **{**options, "head_num": 1}),
        draw(1, 4, 5, 6, dtype=torch.float64),
    )
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    inputs = [tensor.detach().requires_grad_() for tensor in (x, *parameters)]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    if case == "default":
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_dropout_is_on_the_attention_and_in_training_alone():
    module, x = make("scsa", 8, attn_drop_ratio=0.5), draw(2, 8, 7, 7)
    plain = make("scsa", 8)
    assert torch.equal(module.eval()(x), plain(x))
    torch.manual_seed(0)
    first, second = module.train()(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(module(x), first)
    everything = make("pcsa", 8, attn_drop_ratio=1.0).train()
    assert torch.equal(everything(x), 0.5 * x)  # A is zero, so the gate is sigmoid(0)


def test_the_parts_make_the_whole():
    x = draw(2, 8, 14, 15, dtype=torch.float64)
    whole = make("scsa", 8, dtype=torch.float64, head_num=2, qkv_bias=True)
    state = whole.state_dict()
    first, second = (
        make("smsa", 8, dtype=torch.float64),
        make("pcsa", 8, dtype=torch.float64, head_num=2, qkv_bias=True),
    )
    for part in (first, second):
        part.load_state_dict({name: state[name] for name in part.state_dict()})
    assert torch.equal(second(first(x)), whole(x))


@pytest.mark.triton
def test_the_functional_and_the_module_agree(backend):
    module, x = make("scsa", 8, head_num=2, qkv_bias=True, window_size=3), draw(2, 8, 9, 10)
    convs = (module.local_dwc, module.global_dwc_s, module.global_dwc_m, module.global_dwc_l)
    pairs = [(norm.weight, norm.bias) for norm in (module.norm_h, module.norm_w, module.norm)]
    qkv = (module.q, module.k, module.v)
    arguments = (
        [c.weight for c in convs],
        [c.bias for c in convs],
        *pairs,
        [c.weight for c in qkv],
        [c.bias for c in qkv],
    )
    options = {"head_num": 2, "window_size": 3}
    assert torch.equal(functional_scsa(x, *arguments, **options), module(x))
    if backend == "reference":
        assert torch.equal(reference.scsa(x, *arguments, **options), module(x))


def test_importing_is_light():
    """No Triton, timm, Dynamo or extension is imported with fastattn, and nothing warns."""
    heavy = ("triton", "timm", "torch._dynamo", "fastattn._native", "matplotlib", "cuda.bindings")
    code = (
        "import torch, sys; before = set(sys.modules); import fastattn; "
        f"print(*(set({heavy}) & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
    assert "fastattn" not in done.stderr
