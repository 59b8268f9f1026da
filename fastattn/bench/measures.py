"""What is measured beside time: bytes that have to move, memory at its peak, memory kept for backward."""

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .sizes import FORWARD


def bytes_moved_at_least(inputs: Iterable[Tensor], outputs: Iterable[Tensor], work: str) -> int:
    """Bytes of main memory that any implementation moves: inputs read and outputs written; backward reads the inputs
    and the gradients of the outputs and writes those of the inputs."""
    read, written = (sum(t.numel() * t.element_size() for t in tensors) for tensors in (inputs, outputs))
    return read + written if work == FORWARD else 3 * read + 2 * written


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that PyTorch's CPU allocator held during one call, above those it held before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        result = call()  # kept until the profile ends
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == torch.autograd.DeviceType.CPU:
            held += event.nbytes()
            peak = max(peak, held)
    del result
    return peak


def saved_bytes(forward: Callable[[], Tensor], leave_out: Iterable[Tensor]) -> int:
    """Bytes that one forward call keeps for backward, each storage once, without those of the tensors left
    out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    for tensor in leave_out:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del out
    return sum(kept.values())
