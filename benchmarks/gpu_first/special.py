"""What surrounds a call: graphs, streams, torch.compile, autocast, a training step. Kernels' numbers are `right`'s."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn.bench.sizes import CHANNELS_LAST, CONTIGUOUS

from .right import build, outputs, run

HALF = torch.bfloat16
CAPTURED = "scsa-56", "scsa-7", "lga-24", "cfsam", "acp-14", "cat-197"


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Any]:
    """Whether both are the same to the bit."""
    wrong = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    return {"ok": not wrong, **({"differ": wrong} if wrong else {})}


def graph(name: str, backend: str = "triton") -> dict[str, Any]:
    """Forward and backward in a CUDA graph, replayed on another input."""
    module, inputs = build(name, HALF, CONTIGUOUS)
    others = [x.flip(0).contiguous() for x in inputs]
    grads = outputs(run(module, inputs, backend))
    wanted = run(module, others, backend, grads)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(module, inputs, backend, grads)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = run(module, inputs, backend, grads)
    for x, other in zip(inputs, others, strict=True):
        x.copy_(other)
    captured.replay()
    torch.cuda.synchronize()
    return same(found, wanted)


def streams(name: str, backend: str = "triton") -> dict[str, Any]:
    """Two streams at once, on inputs of their own."""
    module, inputs = build(name, HALF, CONTIGUOUS)
    both = [inputs, [x.flip(0).contiguous() for x in inputs]]
    wanted = [run(module, each, backend) for each in both]
    sides = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found: list[dict[str, Tensor]] = [{}, {}]
    for _ in range(5):
        for i, side in enumerate(sides):
            with torch.cuda.stream(side):
                found[i] = run(module, both[i], backend)
    torch.cuda.synchronize()
    results = [same(*pair) for pair in zip(found, wanted, strict=True)]
    return {"ok": all(result["ok"] for result in results), "streams": results}


def compiled(name: str) -> dict[str, Any]:
    """torch.compile(fullgraph=True) around the operators."""
    module, inputs = build(name, HALF, CONTIGUOUS)
    wanted = run(module, inputs, "triton")
    outs = outputs(wanted)

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Tensor) -> Any:
            return self.inner(list(inputs)) if isinstance(self.inner, fastattn.CFSAM) else self.inner(*inputs)

    whole: Any = torch.compile(Called(), fullgraph=True, dynamic=False)
    found = run(whole, inputs, "triton", outs)
    found = {key.removeprefix("_orig_mod.").removeprefix("inner."): value for key, value in found.items()}
    errors = {key: far(found[key], value) for key, value in wanted.items()}
    worst = max(errors, key=errors.__getitem__)
    return {"ok": errors[worst] < 1e-2, "worst": f"{worst}: {errors[worst]:.1e}"}


def far(found: Tensor, wanted: Tensor) -> float:
    norm = wanted.double().norm()
    return float((found.double() - wanted.double()).norm() / norm) if norm else float(found.double().norm())


def autocast(name: str) -> dict[str, Any]:
    """float32 parameters under autocast to bfloat16: eager's dtype, and near to eager's numbers."""
    module, inputs = build(name, torch.float32, CONTIGUOUS)
    with torch.autocast("cuda", HALF):
        wanted, found = (run(module, inputs, backend) for backend in ("reference", "auto"))
    kinds = {key: (found[key].dtype, value.dtype) for key, value in wanted.items() if found[key].dtype != value.dtype}
    error = far(outputs(found)[0], outputs(wanted)[0])
    return {"ok": not kinds and error < 3e-2, "error": error, **({"dtypes": str(kinds)} if kinds else {})}


def training_step() -> dict[str, Any]:
    """Three steps of a small channels_last network with SCSA, beside the reference's."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), fastattn.SCSA(64), nn.Conv2d(64, 128, 3, 2, 1)]
    body += [nn.ReLU(), fastattn.SCSA(128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    start = nn.Sequential(*body).to("cuda").to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 112, 112, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.arange(16, device="cuda") % 10
    losses: dict[str, list[float]] = {}
    for backend in ("reference", "auto"):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses[backend] = []
        for _ in range(3):
            with fastattn.use_backend(backend):
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses[backend].append(loss.item())
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    return {"ok": apart < 1e-4, "losses": losses}


def chosen() -> dict[str, Any]:
    """auto takes triton, and explain says so."""
    said = fastattn.explain(fastattn.SCSA(64).cuda(), torch.randn(2, 64, 14, 14, device="cuda"))
    return {"ok": "served by triton" in said, "said": said}


def odd_strides() -> dict[str, Any]:
    """Slices that start at odd addresses, and other strides."""
    module, (x,) = build("scsa-odd", HALF, CHANNELS_LAST)
    wide = torch.randn(x.numel() + 1, device="cuda", dtype=HALF)
    results = []
    for y in (wide[1:].view(x.shape), x.transpose(2, 3).contiguous().transpose(2, 3), x[:, :, ::2, 1::2]):
        results.append(far(run(module, [y], "triton")["out"], run(module, [y], "reference")["out"]))
    return {"ok": max(results) < 2e-2, "errors": results}


def warm_up() -> dict[str, Any]:
    """fastattn.warmup with tuning, then the same numbers."""
    module, inputs = build("scsa-28", HALF, CONTIGUOUS)
    wanted = run(module, inputs, "reference")
    fastattn.warmup(module, [tuple(inputs[0].shape)], dtype=HALF, tune=True)
    return {"ok": far(run(module, inputs, "triton")["out"], wanted["out"]) < 2e-2}


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "auto takes triton": chosen,
    **{f"graph {name}": partial(graph, name) for name in CAPTURED},
    **{f"two streams {name}": partial(streams, name) for name in ("scsa-56", "scsa-7", "cat-197")},
    **{f"graph cuda {name}": partial(graph, name, "cuda") for name in ("scsa-56", "scsa-7")},
    **{f"two streams cuda {name}": partial(streams, name, "cuda") for name in ("scsa-56", "scsa-7")},
    **{f"compile {name}": partial(compiled, name) for name in ("scsa-56", "lga-24", "cfsam", "acp-14", "cat-197")},
    **{f"autocast {name}": partial(autocast, name) for name in CAPTURED},
    "training, channels_last": training_step,
    "odd addresses and strides": odd_strides,
    "warm up and tune": warm_up,
}


def special(check: str) -> dict[str, Any]:
    return CHECKS[check]()
