"""Submodules mean what they say: what is hooked, wrapped, replaced, pruned or quantised has its effect."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import fastattn
from fastattn.core.module import CHANGED, state_of_children
from tests.core.test_guards import MODULES, make, step
from tests.helpers import FAST

pytestmark = pytest.mark.usefixtures("fast")
LEAVES = {"scsa": "q", "smsa": "norm_h", "pcsa": "v", "lga": "out_conv", "acp": "proj", "cat": "value"}
LEAVES |= {"cfsam": "fuse.0"}
WEIGHTS = {"scsa": "local_dwc", "smsa": "global_dwc_s", "pcsa": "q", "lga": "local_convs.1.1", "acp": "convs.0"}
WEIGHTS |= {"cat": "value", "cfsam": "blocks.0.v"}


class Scaled(nn.Module):
    """Wrap a layer, as an adapter does, with a parameter of its own."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.scale = layer, nn.Parameter(torch.tensor(1.5))

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def forward(self, x):
        return self.layer(x) * self.scale


def set_child(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)


@pytest.mark.parametrize("name", MODULES)
def test_through_its_children_a_module_computes_the_same(name):
    module, x = make(name)
    twin = copy.deepcopy(module)
    fired = []
    for child in twin.modules():
        if child is not twin and not isinstance(child, nn.ModuleList) and not [*child.children()]:
            child.register_forward_hook(lambda child, args, out: fired.append(child))
    expected, grad = step(module, x)
    outs, same = step(twin, x)
    torch.testing.assert_close(outs, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same, grad, rtol=1e-3, atol=1e-4)
    leaves = [child for child in twin.modules() if [*child.parameters(recurse=False)] and not [*child.children()]]
    assert {*leaves} <= {*fired} | {twin}
    grads = dict(twin.named_parameters())
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(grads[key].grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("name", MODULES)
def test_a_childs_hook_fires_and_its_removal_ends_that(name, kind):
    module, x = make(name)
    expected = step(module, x)[0]
    fired = []
    handle = getattr(module.get_submodule(LEAVES[name]), f"register_{kind}_hook")(lambda *_: fired.append(1))
    step(module, x)
    assert fired
    handle.remove()
    fired.clear()
    torch.testing.assert_close(step(module, x)[0], expected, rtol=0, atol=0)
    assert not fired


@pytest.mark.parametrize("name", MODULES)
def test_a_wrapped_child_has_its_effect_and_learns(name):
    module, x = make(name)
    before = step(module, x)[0]
    wrapped = Scaled(module.get_submodule(LEAVES[name]))
    set_child(module, LEAVES[name], wrapped)
    after = step(module, x)[0]
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(after, before, strict=True))
    assert wrapped.scale.grad.abs() > 0


@pytest.mark.parametrize("name", ["scsa", "smsa", "pcsa", "cfsam"])
def test_another_epsilon_counts(name):
    module, x = make(name)
    before = step(module, x)[0]
    norms = [child for child in module.modules() if isinstance(child, nn.GroupNorm | nn.LayerNorm)]
    for norm in norms:
        norm.eps = 0.5
    after = step(module, x)[0]
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(after, before, strict=True))
    for norm in norms:
        norm.eps = 1e-5
    torch.testing.assert_close(step(module, x)[0], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "child", "setting", "value"),
    [
        ("scsa", "local_dwc", "padding", "same"),
        ("smsa", "norm_h", "num_groups", 2),
        ("lga", "multi_scale_convs.1.0", "stride", (4, 4)),
        ("lga", "scale_attention.1", "dim", 3),
        ("acp", "convs.1", "padding_mode", "circular"),
        ("cfsam", "blocks.0.mlp.1", "approximate", "tanh"),
    ],
)
def test_a_setting_that_is_changed_after_a_call_counts(name, child, setting, value):
    """As if it had been changed before the first one, and until it is changed back."""
    module, x = make(name)
    fresh, before = copy.deepcopy(module), step(module, x)[0]
    made = getattr(module.get_submodule(child), setting)
    for twin in (module, fresh):
        setattr(twin.get_submodule(child), setting, value)
    state = state_of_children(module)
    after, expected = step(module, x)[0], step(fresh, x)[0]
    assert state == CHANGED
    torch.testing.assert_close(after, expected, rtol=0, atol=0)
    setattr(module.get_submodule(child), setting, made)
    torch.testing.assert_close(step(module, x)[0], before, rtol=0, atol=0)


def test_a_replaced_activation_counts():
    module, x = make("cfsam")
    before = module(x)[0]
    module.blocks[0].mlp[1] = nn.ReLU()
    assert (module(x)[0] - before).abs().max() > 1e-5


def test_a_replaced_forward_counts():
    module, x = make("scsa")
    before = module(x)
    module.q.forward = lambda y: torch.zeros_like(y)
    zeroed = copy.deepcopy(module)
    nn.init.zeros_(zeroed.q.weight)
    del zeroed.q.forward
    torch.testing.assert_close(module(x), zeroed(x), rtol=1e-4, atol=1e-5)
    del module.q.forward
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)


@pytest.mark.triton
@pytest.mark.parametrize("backend", [FAST])
@pytest.mark.parametrize("name", MODULES)
def test_a_named_backend_refuses_what_it_would_not_call(name, backend):
    module, x = make(name)
    module.get_submodule(LEAVES[name]).register_forward_hook(lambda *_: None)
    with fastattn.use_backend(backend), pytest.raises(RuntimeError, match="child of the module"):
        module(x)


@pytest.mark.parametrize("name", MODULES)
def test_a_pruned_weight_trains_and_is_read_anew_after_a_load(name):
    module, x = make(name)
    layer = module.get_submodule(WEIGHTS[name])
    prune.random_unstructured(layer, "weight", 0.5)
    for _ in range(3):
        step(module, x)
    mask = layer.weight_mask
    assert (layer.weight_orig.grad[mask == 0] == 0).all()
    state = {key: value + 1 if key.endswith("weight_orig") else value for key, value in module.state_dict().items()}
    module.load_state_dict(state)
    plain, _ = make(name)
    with torch.no_grad():
        plain.get_submodule(WEIGHTS[name]).weight.copy_(layer.weight_orig * mask)
    torch.testing.assert_close(step(module, x)[0], step(plain, x)[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("name", ["scsa", "cat"])
def test_normed_weights_train(name, norm):
    module, x = make(name)
    norm(module.get_submodule(WEIGHTS[name]), "weight")
    outs = [step(module, x)[0][0] for _ in range(3)]
    assert all(out.isfinite().all() for out in outs)
    learnt = [parameter for key, parameter in module.named_parameters() if key.startswith(WEIGHTS[name])]
    assert all(parameter.grad is not None for parameter in learnt if parameter.dim() > 1)


@pytest.mark.triton
def test_a_parametrized_weight_stays_on_the_fast_path():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    module, x = make("scsa")
    twin = copy.deepcopy(module)
    twin.q.weight.data *= 2
    parametrize.register_parametrization(module.q, "weight", Doubled())
    with fastattn.use_backend(FAST):
        torch.testing.assert_close(module(x), twin(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_children_are_called():
    module, x = make("cfsam")
    quantised = torch.ao.quantization.quantize_dynamic(module, {nn.Linear})
    out = quantised(x)
    assert [o.shape for o in out] == [m.shape for m in x]
    torch.testing.assert_close(out, module(x), rtol=0.2, atol=0.2)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", MODULES)
def test_copies_look_at_their_own_children(name, again):
    module, x = make(name)
    expected = step(module, x)[0]
    twin = again(module)
    torch.testing.assert_close(step(twin, x)[0], expected, rtol=0, atol=0)
    set_child(twin, LEAVES[name], Scaled(twin.get_submodule(LEAVES[name])))
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(step(twin, x)[0], expected, strict=True))
    torch.testing.assert_close(step(module, x)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["scsa", "lga", "acp", "cat"])
def test_a_hook_that_is_there_when_it_is_compiled_fires(name):
    module, x = make(name)
    module.get_submodule(LEAVES[name]).register_forward_hook(lambda child, args, out: 2 * out)
    expected = module(x)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(module, backend="eager")(x), expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
