"""What is asked of torch and has no public name: who watches a call, what transforms it, and what runs it again."""

import inspect
import sys
from typing import Any
from weakref import ref

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import _CheckpointFrame

dispatch_modes = torch._C._len_torch_dispatch_stack  # how many are active
active_modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack
tracing_state = torch._C._get_tracing_state  # None unless torch.jit.trace runs
profiler_enabled = torch.autograd._profiler_enabled


def transformed() -> bool:
    """Return whether a torch.func transform or forward-mode AD is under way, which fast paths do not follow."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def autocasts(device: str) -> bool:
    """Return whether autocast is on for a type of devices; meta has none, and to ask torch for it raises."""
    return device != "meta" and torch.is_autocast_enabled(device)


def keep_in_inductor(operator: torch._ops.OpOverload, any_format: bool) -> None:
    """Have Inductor, where it is loaded, call an operator as it stands, on tensors that lie as they were traced, but
    with `any_format` on maps that lie as those of the convolutions around it.

    It does the first unasked, but where the environment sets CI, and the operator has a decomposition, it raises
    instead.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is not None and operator not in lowering.lowerings:
        constraint = like_convolutions if any_format else lowering.constrain_to_fake_tensors
        lowering.make_fallback(operator, constraint, warn=False)


def like_convolutions(node: torch.fx.Node, *args: Any, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a node in Inductor: where it lays the convolutions around the node channels_last, maps
    too, which else would be copied before the node and again behind it; all others as they were traced."""
    from torch._inductor import ir, lowering
    from torch._inductor.virtualized import V

    beside = node in V.graph.nodes_prefer_channels_last  # nothing, unless it chooses the convolutions' layout
    traced, named = node.meta.get("eager_input_vals", ((None,) * len(args), dict.fromkeys(kwargs)))

    def laid(value: Any, fake: Any) -> Any:
        if beside and isinstance(value, ir.IRNode) and len(value.get_size()) == 4:
            return ir.ExternKernel.require_stride_order(value, ir.NHWC_STRIDE_ORDER)
        return lowering.constrain_to_fake_tensor(value, fake)

    return tuple(map(laid, args, traced)), {name: laid(value, named[name]) for name, value in kwargs.items()}


def saving_hooks() -> list[tuple[Any, Any]]:
    """Return the pairs (pack, unpack) that saved tensors may go through, the one that they do first."""
    known: Any = torch._C._autograd
    found = []
    while (hooks := known._top_saved_tensors_default_hooks(True)) is not None:
        found.append(hooks)
        if not known._saved_tensors_hooks_is_enabled():  # so none can be pushed again
            return found
        known._pop_saved_tensors_default_hooks()
    for hooks in reversed(found):
        known._push_saved_tensors_default_hooks(*hooks)
    return found


def saving_checkpoint(pack: Any) -> tuple[Any, bool]:
    """Return the checkpoint (use_reentrant=False) whose hook packs what is saved, or None; whether it runs again."""
    for cell in getattr(inspect.unwrap(pack), "__closure__", None) or ():
        held = cell.cell_contents
        again = isinstance(held, ref)
        if isinstance(frame := held() if again else held, _CheckpointFrame):
            return frame, again
    return None, False


def compile_time_constant(function):
    """Have a compiler call a function once, while it traces, and take its answer.

    As torch.compiler.assume_constant_result does, without its import of Dynamo: the arguments are guarded.
    """
    function._dynamo_marked_constant = True
    return function


@compile_time_constant
def backward_pass() -> int:
    """Return the number of the backward pass that runs, or -1."""
    return torch._C._current_graph_task_id()
