"""SCSA's CUDA kernels without a GPU: built by a C++ compiler, with the numbers, the bounds and the traffic that are
theirs on one."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastattn
from benchmarks.gpus import GPUS
from fastattn.bench.accuracy import assert_accurate
from fastattn.scsa import cuda as scsa
from tests import emulated
from tests.cases import CASES, OPERATIONS, make_case
from tests.helpers import DTYPES, FORMATS, check, draw, few, full, make, measure, named

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(emulated.compiler() is None, reason="there is no C++ compiler that builds the kernels"),
]
PLANS = scsa._candidates
H100, RTX_4090, A100 = GPUS[90], GPUS[89], GPUS[80]
TEAMS = {  # fewest and most blocks of a team, and the GPU
    "one block": (1, 1, H100),
    "two blocks": (2, 2, H100),
    "three blocks": (3, 3, H100),
    "two blocks without clusters": (2, 2, RTX_4090),
    "three blocks without clusters": (3, 3, A100),
}
QUICK = {  # what `make test` takes of the cases
    "default": "scsa",
    "twelve per group, odd map": "scsa",
    "144 channels, one pixel left": "scsa",
    "global average, heads": "pcsa",
    "max pooling, heads, bias": "scsa",
    "softmax gates": "scsa",
    "softmax gates, max pooling": "pcsa",
    "kernels longer than the map": "smsa",
    "window leaves a remainder": "scsa",
}
SLOW = {"larger than a megabyte", "larger than a megabyte, narrow"}  # minutes where threads are fibres


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that lets an emulated GPU serve `cuda`, by plans that it may narrow down."""

    def serve(facts=H100, *, blocks=(1, 132), held=(True, False), **changes):
        def some(*arguments):
            fewest, most = blocks
            return [each for each in PLANS(*arguments) if fewest <= each[1].blocks <= most and each[1].held in held]

        monkeypatch.setattr(scsa, "_candidates", some)
        return emulated.install(monkeypatch, facts=facts, **changes)

    yield serve
    monkeypatch.undo()
    emulated.forget()


def cases():
    for i, case in enumerate(case for case in CASES if case not in SLOW):
        for j, layout in enumerate(FORMATS):
            for name in OPERATIONS:
                quick = QUICK.get(case) == name and i % 2 == j
                yield pytest.param(name, case, layout, marks=full(not quick))


@pytest.mark.parametrize(("name", "case", "memory_format"), [*cases()], ids=named)
def test_every_case(name, case, memory_format, gpu):
    gpu(checked=True)
    check(*make_case(name, case, torch.float32, memory_format), "cuda")


@pytest.mark.full
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("case", ["twelve per group, odd map", "default", "max pooling, heads, bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=named)
def test_half_precision(dtype, case, memory_format, gpu):
    gpu(checked=True)
    check(*make_case("scsa", case, dtype, memory_format), "cuda")


QUICK_TEAMS = {("two blocks", True), ("two blocks without clusters", True), ("three blocks without clusters", False)}


@pytest.mark.parametrize(
    ("team", "held", "memory_format"),
    [
        pytest.param(team, held, layout, marks=full((team, held) not in QUICK_TEAMS or held == bool(i)))
        for team in TEAMS
        for held in (True, False)
        for i, layout in enumerate(FORMATS)
    ],
    ids=named,
)
def test_every_team_computes_the_same(team, held, memory_format, gpu):
    """To the last bit, whether it holds the map or reads it again."""
    module, x = make("scsa", 24, window_size=4), draw(3, 24, 9, 10, memory_format=memory_format)
    gpu(blocks=(1, 1))
    alone = check(module, x, "cuda")
    least, most, facts = TEAMS[team]
    machine = gpu(facts, blocks=(least, most), held=(held,), resident=2 * most, checked=True)
    together = check(module, x, "cuda")
    assert machine.launches == 3  # forward, backward, and the sum over the batch
    for key, tensor in alone.items():
        assert torch.equal(together[key], tensor), key


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("name", ["smsa", "pcsa"])
def test_teams_of_the_parts(name, memory_format, gpu):
    module, x = make(name, 24), draw(5, 24, 8, 9, memory_format=memory_format)
    gpu(blocks=(3, 3), resident=2, checked=True)
    check(module, x, "cuda")


def test_softmax_gates_of_a_team(gpu):
    gpu(A100, blocks=(2, 2), resident=4, checked=True)
    check(make("scsa", 16, gate_layer="softmax"), draw(3, 16, 8, 9), "cuda")


@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
@pytest.mark.parametrize("dtype", few(DTYPES), ids=named)
def test_a_map_that_is_not_aligned(dtype, memory_format, gpu):
    gpu(checked=True)
    aligned = draw(2, 16, 8, 8, dtype=dtype)
    x = torch.empty(aligned.numel() + 1, dtype=dtype)[1:].as_strided(
        aligned.shape, aligned.contiguous(memory_format=memory_format).stride()
    )
    assert x.copy_(aligned).data_ptr() % 16
    check(make("scsa", 16, dtype=dtype), x, "cuda")


@pytest.mark.parametrize("seed", few(range(4)))
def test_a_map_whose_mean_is_large(seed, gpu):
    gpu(blocks=(2, 2))
    torch.manual_seed(seed)
    found, truth, eager, _ = measure(fastattn.PCSA(64, window_size=1), torch.randn(2, 64, 7, 7) + 1000, "cuda")
    assert_accurate(found, truth, eager)


def test_nearly_one_hot_attention(gpu):
    gpu()
    module = make("pcsa", 64)
    module.q.weight.data *= 30
    check(module, draw(2, 64, 14, 15), "cuda")


def test_a_sample_is_computed_alike_in_any_batch(gpu):
    gpu(blocks=(2, 2), resident=2)
    module, x = make("scsa", 16), draw(5, 16, 8, 9)
    whole = check(module, x, "cuda")
    for i in range(5):
        alone = check(module, x[i : i + 1], "cuda")
        assert torch.equal(alone["out"], whole["out"][i : i + 1])


@pytest.mark.full
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_output_of_another_dtype(name, gpu):
    """As autocast asks for: x in bfloat16, parameters and output in float32, and the other way round."""
    gpu(checked=True)
    module = make(name, 16)
    options = (1, 7, "avg_pool", "sigmoid")[0 if name != "smsa" else 3 :]
    params = [p.detach() for p in module._params()]
    for given, asked in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        x = draw(2, 16, 8, 10, dtype=given)
        out, saved = scsa.forward(module.operation, x, params, options, asked, True)
        assert out.dtype is asked
        torch.testing.assert_close(out.float(), module(x.float()), rtol=0.01, atol=0.01)
        grad_x, grads = scsa.backward(module.operation, out, x, saved, params, options, True, True)
        leaf = x.float().requires_grad_()
        expected = torch.autograd.grad(module(leaf), [leaf, *module._params()], out.float())
        torch.testing.assert_close(grad_x.float(), expected[0], rtol=0.02, atol=0.02)
        torch.testing.assert_close(grads, torch.cat([g.flatten() for g in expected[1:]]), rtol=1e-3, atol=1e-3)


def test_only_what_is_needed(gpu):
    machine = gpu(checked=True)
    module, x = make("scsa", 16), draw(2, 16, 8, 9)
    options, params = (1, 7, "avg_pool", "sigmoid"), [p.detach() for p in module._params()]
    out, nothing = scsa.forward(module.operation, x, params, options, x.dtype, False)
    same, saved = scsa.forward(module.operation, x, params, options, x.dtype, True)
    assert torch.equal(out, same)
    assert nothing.numel() == 0
    grad_x, grads = scsa.backward(module.operation, out, x, saved, params, options, True, True)
    only_x, none = scsa.backward(module.operation, out, x, saved, params, options, True, False)
    no_x, only_grads = scsa.backward(module.operation, out, x, saved, params, options, False, True)
    assert torch.equal(only_x, grad_x)
    assert torch.equal(only_grads, grads)
    assert none.numel() == no_x.numel() == 0
    assert machine.launches == 2 + 2 + 1 + 2


@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
@pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16]), ids=named)
def test_traffic(dtype, memory_format, gpu, monkeypatch):
    """Distinct bytes that a block reads or writes, over the bytes of x; those of maps once."""
    machine = gpu(checked=True)
    noted = []
    monkeypatch.setattr(emulated.EmulatedKernel, "launch", count_maps(emulated.EmulatedKernel.launch, machine, noted))
    module, x = make("scsa", 64, dtype=dtype), draw(1, 64, 56, 56, dtype=dtype, memory_format=memory_format)
    options, params = (1, 7, "avg_pool", "sigmoid"), [p.detach() for p in module._params()]
    out, _ = scsa.forward(module.operation, x, params, options, dtype, False)
    assert machine.launches == 1
    assert 2 <= machine.bytes / x.nbytes <= 2.05
    _, saved = scsa.forward(module.operation, x, params, options, dtype, True)
    machine.bytes = 0
    scsa.backward(module.operation, out, x, saved, params, options, True, True)
    assert 3 <= machine.bytes / x.nbytes <= 3.1
    assert noted == [[1, 1], [1, 1], [1, 1, 1], []]  # x, out; grad_out beside them; none of them for the batch's sum


def count_maps(launch, machine, noted):
    """Note how often a block of each launch reads, or writes, an element of each map of 56 x 56."""

    def counting(*arguments, **options):
        launch(*arguments, **options)
        pairs = zip(machine.regions, machine.times, strict=True)
        noted.append([times for tensor, times in pairs if tensor.shape[-1] == 56])

    return counting


def test_a_map_that_is_not_held_is_read_in_every_pass(gpu, monkeypatch):
    machine = gpu(checked=True, held=(False,))
    noted = []
    monkeypatch.setattr(emulated.EmulatedKernel, "launch", count_maps(emulated.EmulatedKernel.launch, machine, noted))
    module, x = make("scsa", 8), draw(1, 8, 56, 56)
    with torch.no_grad():
        scsa.forward(module.operation, x, module._params(), (1, 7, "avg_pool", "sigmoid"), x.dtype, False)
    [(of_x, of_out)] = noted
    assert of_x > 1
    assert of_out == 1


def signature(shape, **facts):
    """Return what SCSA's call is on contiguous float32 maps, but for these facts."""
    return scsa.Signature(
        **{
            "spatial": True,
            "channel": True,
            "shape": shape,
            "kernels": (3, 5, 7, 9),
            "qkv_bias": False,
            "options": (1, 7, "avg_pool", "sigmoid"),
            "x_dtype": torch.float32,
            "out_dtype": torch.float32,
            "param_dtype": torch.float32,
            "channels_last": False,
            "aligned": True,
            **facts,
        }
    )


def test_a_team_is_never_more_than_a_slice_of_a_gpu():
    """Of 14 processors: no launch has blocks that wait for others that are not resident."""
    facts = A100._replace(processors=14)
    for shape, backward in itertools.product([(8, 64, 56, 56), (8, 256, 56, 56), (8, 64, 112, 112)], (False, True)):
        assert scsa.plan(signature(shape), facts, backward).blocks <= 2 * facts.processors


def test_autocasts_maps_move_16_bytes_at_a_time():
    known = signature((8, 64, 56, 56), x_dtype=torch.bfloat16, channels_last=True)
    assert (known.wide, known.pack) == (True, 8)
    assert not replace(known, shape=(8, 60, 56, 56)).wide
    assert not replace(known, aligned=False).wide
    assert replace(known, channels_last=False, aligned=False).wide  # each row finds its own start


@pytest.mark.parametrize("facts", [H100, RTX_4090, A100], ids=["H100", "4090", "A100"])
@pytest.mark.parametrize("dtype", few(DTYPES), ids=named)
@pytest.mark.parametrize("shape", [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)], ids=str)
def test_teams_hold_the_maps_of_resnet(shape, dtype, facts):
    """On an H100 forward and backward; on others forward."""
    for channels_last, backward in itertools.product((False, True), (False, True)):
        known = signature((256, *shape), x_dtype=dtype, out_dtype=dtype, param_dtype=dtype, channels_last=channels_last)
        plan = scsa.plan(known, facts, backward)
        assert plan.held or (backward and facts is not H100)
        assert plan.shared_bytes <= facts.shared_bytes
        assert plan.cluster == (plan.blocks > 1 and facts is H100)


def test_a_map_beyond_a_clusters_memory_takes_a_larger_team(gpu):
    """Which has no cluster's size; to the last bit."""
    module, x = make("scsa", 24, window_size=4), draw(3, 24, 9, 10)
    options, params = (1, 4, "avg_pool", "sigmoid"), [p.detach() for p in module._params()]
    gpu()
    out, saved = scsa.forward(module.operation, x, params, options, x.dtype, True)
    gradients = scsa.backward(module.operation, out, x, saved, params, options, True, True)
    for backward, shared_bytes in ((False, 900), (True, 2200)):
        small = H100._replace(shared_bytes=shared_bytes)
        gpu(small, blocks=(9, 24), checked=True, resident=48)
        found = scsa.plan(signature(tuple(x.shape), options=options), small, backward)
        assert found.blocks > 8
        assert not found.cluster
        if backward:
            again = scsa.backward(module.operation, out, x, saved, params, options, True, True)
            assert all(map(torch.equal, again, gradients))
        else:
            assert torch.equal(scsa.forward(module.operation, x, params, options, x.dtype, False)[0], out)


def test_large_maps_have_a_plan():
    """As backbones make them of images of 1,024 and 2,048 pixels a side."""
    every = itertools.product((H100, RTX_4090, A100), [(64, 512, 512), (256, 256, 256), (1024, 64, 64)])
    for facts, shape in (*every, (H100, (2048, 64, 64)), (A100, (2048, 64, 64))):
        for channels_last, backward in itertools.product((False, True), (False, True)):
            assert scsa.plan(signature((1, *shape), channels_last=channels_last), facts, backward)


def test_what_does_not_fit_is_said(gpu):
    gpu()
    module, x = make("smsa", 1024), torch.empty(1, 1024, 3700, 4)
    fastattn.set_backend("cuda")
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"vectors of a \(1024, 3700, 4\) map do not fit"):
        module(x)


def test_what_backward_could_not_take_is_said_before_forward(gpu):
    gpu()
    shape = (1, 1024, 2000, 4)
    assert scsa.plan(signature(shape, channel=False), H100).blocks
    module, x = make("smsa", 1024), torch.empty(shape)
    fastattn.set_backend("cuda")
    with pytest.raises(RuntimeError, match=r"vectors of a \(1024, 2000, 4\) map do not fit"):
        module(x)


def test_indices_stay_within_an_int(gpu):
    with pytest.raises(RuntimeError, match="more than 2147483647 elements"):
        scsa.plan(signature((1, 64, 6000, 6000), spatial=False, options=(1, -1, "avg_pool", "sigmoid")), H100)


@pytest.mark.parametrize("source", ["forward", "backward"])
def test_the_emulator_refuses_what_is_out_of_bounds(source, gpu, monkeypatch):
    """A launch that was not given its output is told."""
    machine = gpu(checked=True)
    noted = scsa._addresses

    def forget(tensors):
        found = noted(tensors)
        machine.regions = tuple(t for t in machine.regions if t.dim() != 4 or t is tensors[0])
        return found

    monkeypatch.setattr(scsa, "_addresses", forget)
    with pytest.raises(RuntimeError, match="beyond what the launch was given"):
        check(make("scsa", 16), draw(1, 16, 8, 9), "cuda")


def sanitize(sanitizer, library, *arguments, **options):
    """Run the kernels' driver under a sanitizer; return what it says, and the process's status."""
    preloaded = []
    for name in (library, "libstdc++.so"):
        asked = [emulated.compiler(), f"-print-file-name={name}"]
        preloaded += [subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()]
    if not Path(preloaded[0]).is_absolute():
        pytest.skip(f"the compiler has no {library}")
    environment = os.environ | {"FASTATTN_SANITIZE": sanitizer, "LD_PRELOAD": ":".join(preloaded), **options}
    command = [sys.executable, "-m", "tests.sanitize.cuda", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.stderr, done.returncode


@pytest.mark.full
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_every_barrier_is_needed(kernel):
    """ThreadSanitizer finds no race; without any one barrier it finds one, or the numbers are wrong."""
    how = "halt_on_error=0 exitcode=0 symbolize=0 suppress_equal_stacks=0 suppress_equal_addresses=0"
    said, status = sanitize("thread", "libtsan.so", kernel, TSAN_OPTIONS=how)
    assert status == 0, said[-2000:]
    found, reports = {}, 0
    for line in said.splitlines():
        reports += line.startswith("SUMMARY: ThreadSanitizer")
        if match := re.match(r"barrier (\d+): (\w+)", line):
            number = int(match[1])
            found[number] = found.get(number, 0) + reports + (match[2] != "right")
            reports = 0
    assert found.pop(0) == 0
    assert found
    assert [number for number, times in found.items() if not times] == []


@pytest.mark.full
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_the_plan_has_all_the_shared_memory_that_a_kernel_takes(kernel):
    """And not 16 bytes less: AddressSanitizer sees those."""
    how = {"ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0"}
    said, status = sanitize("address", "libasan.so", kernel, "--short", "0", **how)
    assert status == 0, said[-2000:]
    said, status = sanitize("address", "libasan.so", kernel, "--short", "16", **how)
    assert status != 0
    assert "heap-buffer-overflow" in said
