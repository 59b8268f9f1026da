"""What a backend does not take is declared beside each operation: a call, explain and the error say the same of it."""

import pytest
import torch

import fastattn
from fastattn.core import backends

pytestmark = pytest.mark.cpu


def a_map(channels: int, size: int = 8) -> torch.Tensor:
    return torch.zeros(1, channels, size, size)


def lga(channels=8, heads=2, kernels=2, scales=3, **options):
    local = (3,) * (kernels - 1)
    return fastattn.LocalGlobalAttention(channels, heads, local, 3, num_scales=scales, **options), a_map(channels)


def acp(layers=2, window=2):
    return fastattn.AggressiveConvPooling(4, layers, pool_size=window), a_map(4, window**layers if window < 3 else 20)


def both(layers=2, window=2, channels=4):
    module = fastattn.EnhancedInteraction(channels, layers, pool_size=window, num_concepts=3)
    return module, torch.zeros(1, 1024, channels)


def cfsam(head):
    return fastattn.CFSAM((4, 4), 2 * head, num_heads=2), [a_map(4), a_map(4, 4)]


def scsa(training=False, **options):
    return fastattn.SCSA(8, **options).train(training), a_map(8)


def cat(channels):
    return fastattn.ConceptualAttention(channels, 2), torch.zeros(1, 3, channels)


# a module and its input on each side of each limit, with the backends that refuse it and what they say
CASES = {
    "scsa": (scsa(), {}),
    "scsa, dropout": (scsa(True, attn_drop_ratio=0.1), dict.fromkeys(("native", "triton"), "dropout")),
    "scsa, no dropout": (scsa(False, attn_drop_ratio=0.1), {}),
    "scsa, recombination": (
        scsa(down_sample_mode="recombination"), dict.fromkeys(("native", "triton"), "recombination"),
    ),
    "smsa": ((fastattn.SMSA(8), a_map(8)), {}),
    "pcsa": ((fastattn.PCSA(8), a_map(8)), {}),
    "cfsam, heads of 16": (cfsam(16), {}),
    "cfsam, heads of 24": (cfsam(24), {"triton": "heads have 24 channels"}),
    "lga, seven kernels": (lga(kernels=7), {}),
    "lga, eight kernels": (lga(kernels=8), {"triton": "8 kernels or scales"}),
    "lga, 15 kernels": (lga(kernels=15), {"triton": "15 kernels or scales"}),
    "lga, 16 kernels": (lga(kernels=16), dict.fromkeys(("native", "triton"), "16 kernels or scales")),
    "lga, heads of 64": (lga(64, 1), {}),
    "lga, 16 kernels, spatial": (lga(kernels=16, contraction="spatial"), {"triton": "16 kernels or scales"}),
    "lga, heads of 65, spatial": (lga(65, 1, contraction="spatial"), {}),
    "lga, heads of 65": (lga(65, 1), {"triton": "heads of 65 channels"}),
    "acp, four layers": (acp(4), {}),
    "acp, five layers": (acp(5), {"triton": "5 layers"}),
    "acp, windows of 16": (acp(1, 16), {}),
    "acp, windows of 17": (acp(1, 17), {"triton": "windows of 17"}),
    "cat, 768 channels": (cat(768), {}),
    "cat, 769 channels": (cat(769), {"triton": "769 channels"}),
    "both": (both(), {}),
    "both, five layers": (both(5), {"triton": "5 layers"}),
    "both, 769 channels": (both(channels=769), {"triton": "769 channels"}),
}  # fmt: skip


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request, native, monkeypatch):
    """Have Triton's device be right, and nothing remembered of it."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    forget = backends._choose.cache_clear
    forget()
    yield request.param
    forget()


def call(module, x):
    return module(*module.arguments_of(x))


@pytest.fixture
def asked(monkeypatch):
    """Note what calls ask, and let none be computed fast."""
    found, choose = [], backends._choose

    def reference(*fields):
        found.append(fields)
        choose(*fields)
        return "reference"

    monkeypatch.setattr(backends, "_choose", reference)
    return found


def test_calls_ask_what_explain_answers(case, asked):
    (module, x), refusals = case
    lines = fastattn.explain(module, x).splitlines()
    explained = asked.pop()
    call(module, x)
    assert asked.pop() == explained
    told = {line.split(":")[0].strip(): line.partition(": ")[2] for line in lines[1:]}
    assert told.pop("cuda").startswith("x is on cpu; cuda serves NVIDIA GPUs")
    assert {name for name, text in told.items() if text != "can serve"} == set(refusals)
    for name, reason in refusals.items():
        assert reason in told[name]
    for name in ("native", "triton"):
        with fastattn.use_backend(name):
            if name not in refusals:
                call(module, x)
                continue
            with pytest.raises(RuntimeError, match=rf"backend '{name}' cannot serve .*{refusals[name]}"):
                call(module, x)


def test_an_operation_by_its_name_is_explained_like_the_module(case):
    (module, x), _ = case
    options = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    by_name = fastattn.explain(str(module.operation), x, **options)
    assert by_name == fastattn.explain(module, x)


def test_a_module_that_runs_through_its_children_is_explained(native):
    module = fastattn.SCSA(8)
    module.norm.register_forward_hook(lambda *_: None)
    assert "served by the module's children" in fastattn.explain(module, a_map(8))


def test_options_replace_the_modules_own():
    module = fastattn.SCSA(8, attn_drop_ratio=0.5).eval()
    assert "dropout" in fastattn.explain(module, a_map(8), training=True)
    assert not module.training
