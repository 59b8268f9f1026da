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
saving_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # (pack, unpack) that saved tensors go through


def transformed() -> bool:
    """Return whether a torch.func transform or forward-mode AD is under way, which fast paths do not follow."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def autocasts(device: str) -> bool:
    """Return whether autocast is on for a type of devices; meta has none, and to ask torch for it raises."""
    return device != "meta" and torch.is_autocast_enabled(device)


def keep_in_inductor(operator: torch._ops.OpOverload) -> None:
    """Have Inductor, where it is loaded, call an operator as it stands, on tensors that lie as they were traced.

    It does so unasked, but where the environment sets CI, and the operator has a decomposition, it raises instead.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is not None and operator not in lowering.lowerings:
        lowering.make_fallback(operator, lowering.constrain_to_fake_tensors, warn=False)


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
