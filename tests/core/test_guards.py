"""Raw pointers are taken only from dense tensors on x's device: everything else is served another way, or refused."""

import copy
import importlib
import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import fastattn
from tests.helpers import DEVICE, few_interpreted, slow_interpreted

pytestmark = pytest.mark.triton


def make(name):
    """Return a small module with its input."""
    torch.manual_seed(0)
    module, shape = {
        "scsa": (fastattn.SCSA(16), (2, 16, 14, 14)),
        "smsa": (fastattn.SMSA(16), (2, 16, 14, 14)),
        "pcsa": (fastattn.PCSA(16), (2, 16, 14, 14)),
        "lga": (fastattn.LocalGlobalAttention(8, 4, (1, 3), 5, 4, 3, 2), (2, 8, 9, 8)),
        "acp": (fastattn.AggressiveConvPooling(16), (2, 16, 8, 8)),
        "cat": (fastattn.ConceptualAttention(16, 5), (2, 20, 16)),
        "cfsam": (fastattn.CFSAM([8, 16], 32, num_heads=2), None),
    }[name]
    x = torch.randn(*shape) if shape else [torch.randn(2, 8, 4, 4), torch.randn(2, 16, 2, 2)]
    return module, x


MODULES = ("scsa", "smsa", "pcsa", "lga", "acp", "cat", "cfsam")
SERVED = few_interpreted(MODULES)  # each takes seconds there


def step(module, x):
    """Return the outputs and the gradient of the first input."""
    maps = [t.detach().clone().requires_grad_() for t in (x if isinstance(x, list) else [x])]
    out = module(maps if isinstance(x, list) else maps[0])
    outs = out if isinstance(out, list) else [out]
    sum(t.square().sum() for t in outs).backward()
    return [t.detach() for t in outs], maps[0].grad


def refuses(module, x):
    try:
        module(x)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error)
    return ""


def crashes():
    """What ended the process before it was refused: printed as JSON by a process of its own."""
    found = {}
    for name in MODULES:
        module, x = make(name)
        whole = copy.deepcopy(module).to("meta")
        found[f"{name}: all parameters on meta"] = refuses(whole, x)
        key, parameter = [*module.named_parameters()][-1]
        parent = module.get_submodule(key.rpartition(".")[0])
        setattr(parent, key.rpartition(".")[2], nn.Parameter(parameter.to("meta")))
        found[f"{name}: one parameter on meta"] = refuses(module, x)
        module, x = make(name)
        next(module.parameters()).untyped_storage().resize_(0)
        found[f"{name}: a freed parameter"] = refuses(module, x)
    print(json.dumps(found))


@slow_interpreted
@pytest.mark.skipif(DEVICE != "cpu", reason="would poison the GPU's context")
def test_parameters_without_memory_are_refused():
    command = [sys.executable, "-W", "ignore", "-c", "from tests.core.test_guards import crashes; crashes()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-500:]
    found = json.loads(done.stdout)
    assert len(found) == 3 * len(MODULES)
    accepted = [case for case, said in found.items() if not said]
    assert not accepted
    on_meta = {case: said for case, said in found.items() if "on meta" in case}
    unnamed = {case: said for case, said in on_meta.items() if not ("meta" in said and "cpu" in said)}
    assert not unnamed


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", SERVED)
def test_the_default_device_does_not_matter(name):
    module, x = make(name)
    expected, grad = step(module, x)
    maps = [t.clone().requires_grad_() for t in (x if isinstance(x, list) else [x])]
    with torch.device("meta"):
        out = module(maps if isinstance(x, list) else maps[0])
    outs = out if isinstance(out, list) else [out]
    sum(t.square().sum() for t in outs).backward()
    torch.testing.assert_close([t.detach() for t in outs], expected)
    torch.testing.assert_close(maps[0].grad, grad)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", SERVED)
def test_views_that_are_not_what_memory_holds(name):
    """A negated view of x, and of the output's gradient, and a gradient that is zero without memory."""
    module, x = make(name)
    first = x[0] if isinstance(x, list) else x
    views = [torch._neg_view(t) for t in x] if isinstance(x, list) else torch._neg_view(x)
    negated = [-t for t in x] if isinstance(x, list) else -x
    torch.testing.assert_close(module(views), module(negated))
    for given, plain in (
        (torch._neg_view(torch.ones_like(first)), -torch.ones_like(first)),
        (torch._efficientzerotensor(first.shape, device=first.device), torch.zeros_like(first)),
    ):
        grads = []
        for grad in (given, plain):
            leaves = [t.clone().requires_grad_() for t in (x if isinstance(x, list) else [x])]
            out = module(leaves if isinstance(x, list) else leaves[0])
            out = out[0] if isinstance(out, list) else out
            grads.append(torch.autograd.grad(out, leaves[0], grad)[0])
        torch.testing.assert_close(grads[0].resolve_neg(), grads[1])


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", SERVED)
def test_a_parameter_that_wraps_others(name):
    """As sharded and quantised parameters are."""
    from torch.testing._internal.two_tensor import TwoTensor

    module, x = make(name)
    expected = step(copy.deepcopy(module), x)[0]
    for key, parameter in [*module.named_parameters()]:
        parent = module.get_submodule(key.rpartition(".")[0])
        weight = parameter.detach()
        setattr(parent, key.rpartition(".")[2], nn.Parameter(TwoTensor(weight, weight.clone())))
    outs, _ = step(module, x)
    for out, plain in zip(outs, expected, strict=True):
        torch.testing.assert_close(getattr(out, "a", out), plain)
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", few_interpreted(["scsa", "lga", "acp", "cat"]))
def test_forward_mode_keeps_the_tangent(name):
    """Through the reference."""
    from torch.autograd import forward_ad

    module, x = make(name)
    module.requires_grad_(False)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent))).tangent
    assert found is not None
    leaf, along = x.clone().requires_grad_(), torch.randn_like(found)
    (grad,) = torch.autograd.grad(module(leaf), leaf, along)
    torch.testing.assert_close((found * along).sum(), (tangent * grad).sum(), rtol=1e-4, atol=1e-4)


def test_an_lga_resets_its_own_parameters():
    with torch.device("meta"):
        module = fastattn.LocalGlobalAttention(8, 4)
    module.to_empty(device=DEVICE)
    for parameter in module.parameters():
        nn.init.constant_(parameter, float("nan"))
    for child in module.modules():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()
    assert not [name for name, parameter in module.named_parameters() if parameter.isnan().any()]
    assert module.learnable_alpha_local == module.learnable_alpha_global == 0.5


def test_the_authors_alphas_are_scalars():
    """In checkpoints and for the functional; fully_shard refuses such parameters."""
    module, x = make("lga")
    with torch.no_grad():
        module.learnable_alpha_local.fill_(0.25)
    authors = {name: t.view(()) if "alpha" in name else t for name, t in module.state_dict().items()}
    for assign in (False, True):
        loaded = make("lga")[0]
        loaded.load_state_dict(authors, assign=assign)
        assert {parameter.dim() for parameter in loaded.parameters()} == {1, 4}
        torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    assert authors["learnable_alpha_local"].dim() == 0
    *given, branches, out = module.operands()
    scalars = [branch._replace(alpha=branch.alpha.view(())) for branch in branches]
    expected, found = (
        fastattn.functional.local_global_attention(x, *given, b, out, num_heads=4) for b in (branches, scalars)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def sharded():
    """What each module computes, sharded by FSDP2 in a group of one process, of its own."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name in MODULES:
        module, x = make(name)
        outs, grad = step(module, x)
        state = {key: t.view(()) if "alpha" in key else t for key, t in module.state_dict().items()}
        twin = fully_shard(copy.deepcopy(module), mesh=init_device_mesh("cpu", (1,)))
        nn.init.zeros_(next(twin.parameters()))
        set_model_state_dict(twin, state, options=StateDictOptions(full_state_dict=True))
        found, own = step(twin, x)
        torch.testing.assert_close((*found, own), (*outs, grad), rtol=0, atol=0, msg=name)
        grads = dict(module.named_parameters())
        for key, parameter in twin.named_parameters():
            torch.testing.assert_close(
                parameter.grad.full_tensor(), grads[key].grad, rtol=0, atol=0, msg=f"{name} {key}"
            )
    dist.destroy_process_group()


@slow_interpreted
@pytest.mark.skipif(DEVICE != "cpu" or not torch.distributed.is_available(), reason="shards on the CPU")
def test_every_module_is_sharded():
    command = [sys.executable, "-W", "ignore", "-c", "from tests.core.test_guards import sharded; sharded()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_checkpoint_of_another_module_was_made_for_no_lga():
    module, _ = make("lga")
    with pytest.raises(RuntimeError, match=r"module\.out_conv") as raised:
        module.load_state_dict({f"module.{name}": value for name, value in module.state_dict().items()})
    assert "made for" not in str(raised.value)


@pytest.mark.skipif(DEVICE != "cpu", reason="of the CPU's path without the extension")
def test_cat_without_the_extension_is_checkpointed(monkeypatch):
    from torch.utils.checkpoint import checkpoint

    module, x = make("cat")
    monkeypatch.setattr("fastattn.interaction.operation.status", lambda: ("not built", ""))
    grads = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        with fastattn.use_backend("native"):
            run(leaf).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_an_extension_that_does_not_load_is_warned_of_once(monkeypatch):
    from fastattn.core import native

    monkeypatch.setattr(native, "_load", lambda: (None, "failed to load", "cut short"))
    monkeypatch.setattr(native, "_warned", False)
    with pytest.warns(UserWarning, match="cut short"):
        native.warn_once()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        native.warn_once()


def test_threads_have_their_own_grids():
    """Of one ViT on images of several sizes."""
    from fastattn.models.tokens import Grid

    class PatchEmbed:
        grid_size = (14, 14)

    grid = Grid(PatchEmbed(), True)
    grid.see(None, (), torch.empty(1, 4, 8, 2))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: grid.size).result() == (14, 14)
    assert grid.size == (4, 8)
    assert copy.deepcopy(grid).size == (14, 14)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", SERVED)
def test_fx_takes_no_step_inside(name):
    module, x = make(name)
    graph = torch.fx.symbolic_trace(module)
    calls = [node for node in graph.graph.nodes if node.op.startswith("call")]
    assert {node.op for node in calls} == {"call_function"}
    assert {node.target.__module__.partition(".")[0] for node in calls} == {"fastattn"}  # parameters' tuples, the call
    torch.testing.assert_close(graph(x), module(x), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(graph(x), module(x), rtol=0, atol=0)  # whose parameters are the module's own


@slow_interpreted
@pytest.mark.parametrize("attention", ["interaction", "scsa"])
def test_a_vit_that_drops_patches_is_refused(attention):
    pytest.importorskip("timm")
    from fastattn import models

    with pytest.raises(ValueError, match="patch_drop_rate"):
        models.create("vit_tiny_patch16_224", attention, patch_drop_rate=0.5)
    models.create("vit_tiny_patch16_224", None, patch_drop_rate=0.5)


@pytest.mark.parametrize("module", ["scsa", "lga", "interaction.acp", "cfsam"])
def test_operators_are_registered_once(module):
    loaded = importlib.import_module(f"fastattn.{module}.operation")
    before = dict(vars(loaded))
    try:
        importlib.reload(loaded)
        plain, x = make("scsa")
        assert plain(x).isfinite().all()
    finally:
        vars(loaded).update(before)


@pytest.mark.skipif(DEVICE != "cpu", reason="of the CPU's path")
def test_the_residual_of_cat_is_not_rounded_under_autocast():
    torch.manual_seed(0)
    module, x = fastattn.ConceptualAttention(64), torch.randn(4, 196, 64)
    truth = copy.deepcopy(module).double()(x.double())
    errors = []
    for backend in ("native", "reference"):
        with torch.autocast("cpu", torch.bfloat16), fastattn.use_backend(backend):
            out = module(x)
        assert out.dtype == torch.float32
        errors.append((out.double() - truth).norm() / truth.norm())
    assert errors[0] <= 2 * errors[1]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", SERVED)
def test_an_exported_program_has_its_gradients(name):
    module, x = make(name)
    expected = step(module, x)
    program = torch.export.export(module, (x,)).module()
    found = step(program, x)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    grads = {key.replace("_", "."): parameter.grad for key, parameter in program.named_parameters()}
    assert len(grads) == len([*module.parameters()])
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(grads[key.replace("_", ".")], parameter.grad, msg=key)
    if name != "cfsam":
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(program(leaf).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            grad.sum().backward()


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", MODULES)
def test_on_meta_a_module_gives_its_shapes(name):
    """As tools ask that count what a model takes."""
    module, x = make(name)
    maps = [t.to("meta") for t in x] if isinstance(x, list) else x.to("meta")
    expected, found = module(x), copy.deepcopy(module).to("meta")(maps)
    pairs = zip(*(out if isinstance(out, list) else [out] for out in (expected, found)), strict=True)
    for wanted, got in pairs:
        assert got.is_meta
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
