"""A checkpoint's recomputation does what its first run did, whatever has been set since."""

import copy
import functools
import threading

import pytest
import torch
from torch.utils.checkpoint import CheckpointError, checkpoint

import fastattn
from fastattn.core.recomputation import as_first
from fastattn.core.torch_state import saving_hooks
from tests.core.test_guards import SERVED, make
from tests.helpers import FAST

pytestmark = pytest.mark.triton


def gradients(run, module, x, first, then):
    """Return x's and the parameters' gradients of a run under one backend whose backward runs under another."""
    maps = [t.clone().requires_grad_() for t in (x if isinstance(x, list) else [x])]
    with fastattn.use_backend(first):
        out = run(maps if isinstance(x, list) else maps[0])
    with fastattn.use_backend(then):
        return torch.autograd.grad(sum(t.sum() for t in out), [*maps, *module.parameters()], allow_unused=True)


@pytest.mark.parametrize(("first", "then"), [("reference", FAST), (FAST, "reference")])
@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("checkpoints", [1, 2])
def test_it_has_the_backend_of_the_first_run(name, first, then, checkpoints):
    """In a checkpoint, and in one of one."""
    module, x = make(name)
    run = module
    for _ in range(checkpoints):
        run = functools.partial(checkpoint, run, use_reentrant=False)
    expected = gradients(module, module, x, first, first)
    found = gradients(run, module, x, first, then)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_answers_are_given_again_in_their_order():
    """To each checkpoint its own, in every backward pass, whichever thread runs it."""
    state = [0]

    def work(x):
        for _ in range(3):
            state[0] += 1
            x = (x * as_first(lambda: state[0])).sin()
        return x

    leaves = [torch.ones(1).requires_grad_() for _ in range(2)]
    expected = [torch.autograd.grad(work(leaf), leaf) for leaf in leaves]
    state[0] = 0
    outs = [checkpoint(work, leaf, use_reentrant=False) for leaf in leaves]
    found = []

    def backward():
        for _ in range(2):
            pairs = zip(outs, leaves, strict=True)
            found.append([torch.autograd.grad(out, leaf, retain_graph=True) for out, leaf in pairs])

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert found == [expected, expected]


def test_a_checkpoint_in_another():
    """Where the outer one runs again, the inner one runs for the first time."""
    state = [0.0]

    def work(x):
        state[0] += 1
        return (x * as_first(lambda: state[0])).sin()

    def outer(x):
        return work(checkpoint(lambda x: work(work(x)), work(x), use_reentrant=False))

    leaf = torch.full((1,), 0.3, dtype=torch.float64).requires_grad_()
    expected = torch.autograd.grad(outer(leaf), leaf)
    state[0] = 0.0
    out = checkpoint(outer, leaf, use_reentrant=False)
    assert torch.autograd.grad(out, leaf, retain_graph=True) == expected
    assert torch.autograd.grad(out, leaf) == expected
    assert saving_hooks() == []


def test_what_did_not_run_at_first_is_not_known():
    asked = []

    def work(x):
        for _ in range(1 + len(asked)):
            x = (x * as_first(lambda: 2.0)).sin()
        asked.append(1)
        return x

    leaf = torch.ones(1).requires_grad_()
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        out = checkpoint(work, leaf, use_reentrant=False)
    with pytest.raises(CheckpointError):
        out.backward()


@pytest.fixture
def vit():
    timm = pytest.importorskip("timm")
    from fastattn.models.tokens import put_before_vit_blocks

    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
    model = timm.models.vision_transformer.VisionTransformer(**options, dynamic_img_size=True)
    put_before_vit_blocks(
        model,
        lambda dim, num_prefix_tokens: fastattn.EnhancedInteraction(
            dim, 1, num_concepts=3, num_prefix_tokens=num_prefix_tokens
        ),
    )
    return model


def crops():
    return torch.randn(1, 3, 32, 64), torch.randn(1, 3, 64, 32)


def test_crops_of_two_sizes_keep_their_grids(vit):
    twin, images = copy.deepcopy(vit), crops()
    twin.set_grad_checkpointing(True)
    for model in (vit, twin):
        sum(model(image).square().sum() for image in images).backward()
    for (name, plain), again in zip(vit.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(again.grad, plain.grad, msg=name)


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_a_checkpoint_that_keeps_no_notes_is_refused_crops(vit):
    image = crops()[0]
    inside = checkpoint(vit, image.requires_grad_(), use_reentrant=True)
    inside.sum().backward()  # it sees its patches again
    tokens = vit._pos_embed(vit.patch_embed(image))
    out = checkpoint(vit.blocks[0], tokens, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        out.sum().backward()
