"""The registered operators: schemas, fakes, autograd, and every way in which PyTorch takes a module along."""

import copy
import io
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastattn
from fastattn.scsa.functional import _autocast_dtype
from tests.helpers import (
    DEVICE,
    DTYPES,
    FAST,
    FORMATS,
    INTERPRETED,
    MODULES,
    by_fast_first,
    draw,
    few,
    few_interpreted,
    full,
    make,
    named,
    run,
    slow_interpreted,
)

pytestmark = pytest.mark.triton

OPERATIONS = ("scsa", "smsa", "pcsa")
OPTIONS = {"scsa": (1, 7, "avg_pool", "sigmoid"), "smsa": ("sigmoid",), "pcsa": (1, 7, "avg_pool", "sigmoid")}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Forget compiled code, so that no test meets another's recompilation limit."""
    yield
    torch.compiler.reset()


def flat(module):
    """Return the parameters in the operators' order, without history."""
    return [p.detach() for p in module._params()]


INPUTS = {
    "nchw": lambda: draw(2, 16, 14, 14),
    "nhwc": lambda: draw(2, 16, 14, 14, memory_format=torch.channels_last),
    "strided": lambda: draw(2, 16, 14, 28)[..., ::2],
    "bfloat16 with float32 parameters": lambda: draw(2, 16, 14, 15, dtype=torch.bfloat16),
}


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("name", "layout"),  # by turns
    [
        pytest.param(name, layout, marks=full(j != i or (INTERPRETED and i > 0)))
        for i, name in enumerate(OPERATIONS)
        for j, layout in enumerate(INPUTS)
    ],
)
@slow_interpreted
def test_opcheck(name, layout):
    module, x = make(name, 16), INPUTS[layout]()
    params, options = flat(module), OPTIONS[name]
    for save in (True, False):
        torch.library.opcheck(module.operation.forward_op, (x, params, *options, x.dtype, FAST, save))
    out, saved = module.operation.forward_op(x, params, *options, x.dtype, FAST, True)
    for need_x, need_params in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            module.operation.backward_op, (out, x, saved, params, *options, x.dtype, FAST, need_x, need_params)
        )


@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
@pytest.mark.parametrize("name", OPERATIONS)
def test_compile_fullgraph(name, memory_format, backend):
    module, x = make(name, 16), draw(2, 16, 14, 15, memory_format=memory_format)
    # Inductor takes long over the reference and has one test of its own below
    compiled = torch.compile(module, fullgraph=True, backend="inductor" if backend == FAST else "aot_eager")
    eager, got = run(module, x, torch.ones_like(x), backend), run(compiled, x, torch.ones_like(x), backend)
    assert got["out"].stride() == x.stride()
    for key, tensor in eager.items():
        other = got[key if key in got else f"_orig_mod.{key}"]
        torch.testing.assert_close(other, tensor, rtol=1e-4, atol=1e-4)


@by_fast_first
def test_compile_without_gradients(backend):
    module, x = make("scsa", 16), draw(2, 16, 14, 14)
    compiled = torch.compile(module, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))


@slow_interpreted
@by_fast_first
def test_compile_dynamic_shapes(backend):
    module = make("scsa", 16)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 16, 14, 14), (3, 16, 20, 23), (5, 16, 9, 30)):
        x = draw(*shape)
        torch.testing.assert_close(compiled(x), module(x))


@by_fast_first
def test_compile_the_functional(backend):
    x, norm, qkv = draw(2, 16, 14, 14), (torch.ones(16), torch.zeros(16)), [torch.ones(16, 1, 1, 1)] * 3

    def call(x):
        return fastattn.functional.pcsa(x, norm, qkv, head_num=2, backend=backend)

    torch.testing.assert_close(torch.compile(call, fullgraph=True)(x), call(x))


@pytest.mark.usefixtures("fast")
def test_compiled_code_follows_the_choice_of_backend():
    module, x = make("scsa", 16), draw(1, 16, 14, 14)
    graphs = []

    def record(graph, _):
        graphs.append(any("fastattn" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=record)
    with torch.no_grad():
        compiled(x)
        fastattn.set_backend("reference")
        compiled(x)
        with fastattn.use_backend(FAST):
            compiled(x)
        compiled(x)
    assert graphs == [True, False, True]

    @torch.compile(fullgraph=True, backend=record)
    def choose_inside(x):
        with fastattn.use_backend(FAST):
            return module(x)

    with torch.no_grad():
        choose_inside(x)
    assert graphs == [True, False, True, True]
    assert fastattn.get_backend() == "reference"


@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_export(name, strict, backend):
    module, x = make(name, 16).eval(), draw(2, 16, 14, 14)
    program = torch.export.export(module, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), module(x))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    torch.testing.assert_close(torch.export.load(stored).module()(x), module(x))


def test_export_with_a_dynamic_batch(backend):
    module = make("scsa", 16).eval()
    dynamic = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(module, (draw(4, 16, 14, 14),), dynamic_shapes=dynamic)
    x = draw(7, 16, 14, 14)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_copies(name, how, backend):
    module, x = make(name, 16), draw(2, 16, 14, 14)
    twin = how(module)
    assert torch.equal(twin(x), module(x))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert not torch.equal(twin(x), module(x))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("to", few([torch.bfloat16, torch.float16]), ids=named)
@pytest.mark.parametrize("dtype", few_interpreted(DTYPES), ids=named)
@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_gives_eagers_dtype(name, dtype, to, compiled):
    module, x = make(name, 16), draw(2, 16, 14, 14, dtype=dtype).requires_grad_()
    call = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    with torch.autocast(DEVICE, to):
        with fastattn.use_backend("reference"):
            eager = module(x)
        with fastattn.use_backend(FAST):
            out = call(x)
    assert out.dtype == eager.dtype
    torch.testing.assert_close(out, eager, rtol=0.05, atol=0.05)
    out.sum().backward()
    assert x.grad.dtype == dtype
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.fixture
def autocast_on_cuda():
    """Switch autocast on for CUDA, which its context manager refuses to do without a GPU."""

    def switch(to):
        torch.set_autocast_dtype("cuda", to)
        torch.set_autocast_enabled("cuda", True)

    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    yield switch
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.cpu
@pytest.mark.skipif(torch.version.cuda is None, reason="fakes CUDA tensors, which needs a build for CUDA")
@pytest.mark.parametrize("to", few([torch.bfloat16, torch.float16]), ids=named)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_on_a_gpu_gives_eagers_dtype(name, gate, dtype, to, autocast_on_cuda):
    with FakeTensorMode(), torch.device("cuda"):
        module = MODULES[name](16, gate_layer=gate)
        x = torch.empty(2, 16, 14, 14, dtype=dtype)
        autocast_on_cuda(to)
        with fastattn.use_backend("reference"):
            eager = module(x).dtype
    assert _autocast_dtype(module.operation, "cuda", dtype, gate) == eager


@pytest.mark.usefixtures("fast")
def test_norms_in_float32_beside_bfloat16():
    module, x = make("scsa", 16, dtype=torch.bfloat16), draw(2, 16, 14, 14, dtype=torch.bfloat16)
    for norm in (module.norm_h, module.norm_w, module.norm):
        norm.float()
    got, eager = (run(module, x, torch.ones_like(x), backend) for backend in (FAST, "reference"))
    for key, tensor in eager.items():
        assert got[key].dtype == tensor.dtype, key
    torch.testing.assert_close(got["out"], eager["out"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_without_gradients(mode, backend):
    module, x = make("scsa", 16), draw(2, 16, 14, 14)
    expected = module(x)
    with mode():
        out = module(x)
    assert not out.requires_grad
    assert out.is_inference() == (mode is torch.inference_mode)
    assert torch.equal(out, expected)


@pytest.mark.usefixtures("fast")
def test_nothing_is_saved_without_gradients():
    module, x = make("scsa", 16).requires_grad_(False), draw(2, 16, 14, 14)
    out = module(x)
    assert out.grad_fn is None
    assert module.operation.forward_op(x, flat(module), *OPTIONS["scsa"], x.dtype, FAST, False)[1].numel() == 0


@pytest.mark.usefixtures("fast")
def test_what_is_saved_is_x_and_vectors():
    module, x = make("scsa", 64), draw(8, 64, 56, 56).requires_grad_()
    held = {}
    parameters = {p.data_ptr() for p in module.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    assert sum(held.values()) <= 1.1 * x.numel() * x.element_size()


@pytest.mark.parametrize("learning", [(), ("q.weight",), ("local_dwc.bias", "norm.weight")], ids=str)
@pytest.mark.parametrize("input_learns", [False, True], ids=["frozen input", "learning input"])
def test_frozen_parameters(learning, input_learns, backend):
    if not learning and not input_learns:
        return
    module, x = make("scsa", 16), draw(2, 16, 14, 14)
    expected = run(module, x, torch.ones_like(x), backend)
    for name, p in module.named_parameters():
        p.requires_grad_(name in learning)
    x.requires_grad_(input_learns)
    module(x).backward(torch.ones_like(x))
    for name, p in module.named_parameters():
        assert (p.grad is not None) == (name in learning), name
        if name in learning:
            torch.testing.assert_close(p.grad, expected[name])
    assert (x.grad is not None) == input_learns
    if input_learns:
        torch.testing.assert_close(x.grad, expected["grad_x"])


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", OPERATIONS)
def test_double_backward_raises(name):
    module, x = make(name, 16), draw(2, 16, 14, 14).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward is not supported .* use backend='reference'"):
        gradient.square().sum().backward()
    with fastattn.use_backend("reference"):
        (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None


def test_inputs_are_left_alone(backend):
    module, x = make("scsa", 16), draw(2, 16, 14, 14)
    before, state = x.clone(), copy.deepcopy(module.state_dict())
    grad_out = torch.ones_like(x)
    run(module, x, grad_out, backend)
    assert torch.equal(x, before)
    assert torch.equal(grad_out, torch.ones_like(x))
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_view_of_a_leaf(backend):
    module, leaf = make("scsa", 16), draw(2, 16, 14, 14).flatten().requires_grad_()
    module(leaf.view(2, 16, 14, 14)).sum().backward()
    expected = run(module, leaf.detach().view(2, 16, 14, 14), torch.ones(2, 16, 14, 14), backend)["grad_x"]
    torch.testing.assert_close(leaf.grad.view(expected.shape), expected)


def test_gradients_add_up_over_two_uses(backend):
    module, x = make("scsa", 16), draw(2, 16, 14, 14)
    once = run(module, x, torch.ones_like(x), backend)
    x.requires_grad_()
    (module(x) + module(x)).sum().backward()
    torch.testing.assert_close(x.grad, 2 * once["grad_x"])
    torch.testing.assert_close(module.v.weight.grad, 2 * once["v.weight"])


def test_checkpointing(backend):
    module, x = make("scsa", 16), draw(2, 16, 14, 14).requires_grad_()
    torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, run(module, x, torch.ones_like(x), backend)["grad_x"])


def test_function_transforms_are_served_by_the_reference():
    module, x = make("scsa", 16), draw(3, 16, 14, 14)
    batched = torch.func.vmap(module)(x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(batched, module(x), rtol=1e-4, atol=1e-5)
    gradient = torch.func.grad(lambda x: module(x).sum())(x)
    torch.testing.assert_close(gradient, run(module, x, torch.ones_like(x), "reference")["grad_x"])


@pytest.mark.usefixtures("fast")
def test_operator_refuses_parameters_of_other_sizes():
    module, x = make("scsa", 16), draw(2, 16, 14, 14)
    params = flat(module)
    for bad in (params[:-1], [params[0][:2], *params[1:]], flat(make("scsa", 32))):
        with pytest.raises(ValueError, match="do not fit 16 channels"):
            module.operation.forward_op(x, bad, *OPTIONS["scsa"], x.dtype, FAST, False)


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, but must not go wrong in silence
def test_whoever_watches_sees_the_registered_operator():
    """Unwatched calls leave the dispatcher out; a dispatch mode and the profiler must not notice."""
    module, x = make("scsa", 16), draw(2, 16, 14, 14).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"fastattn::scsa_forward", "fastattn::scsa_backward"} <= names

    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.name())
            return func(*args, **(kwargs or {}))

    seen: set[str] = set()
    with Recorder():
        module(x).sum().backward()
    assert {"fastattn::scsa_forward", "fastattn::scsa_backward"} <= seen
    graph = str(torch.jit.trace(module, x.detach()).graph)
    assert "fastattn::" not in graph  # a tracer records what runs without this package
