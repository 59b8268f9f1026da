"""What is asked of torch and has no public name: who watches a call, and what transforms it."""

import torch
from torch.autograd import forward_ad

dispatch_modes = torch._C._len_torch_dispatch_stack  # how many are active
active_modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack
tracing_state = torch._C._get_tracing_state  # None unless torch.jit.trace runs
profiler_enabled = torch.autograd._profiler_enabled


def transformed() -> bool:
    """Return whether a torch.func transform or forward-mode AD is under way, which fast paths do not follow."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def compile_time_constant(function):
    """Have a compiler call a function once, while it traces, and take its answer.

    As torch.compiler.assume_constant_result does, without its import of Dynamo: the arguments are guarded.
    """
    function._dynamo_marked_constant = True
    return function
