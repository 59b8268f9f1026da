"""What a checkpoint's recomputation has to do as its first run did, whatever has been set since.

torch.utils.checkpoint keeps the arguments of what it runs again, the state of random numbers and autocast, and nothing
of others: answers that depend on more are noted in the first run, in their order, and given again.
"""

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .torch_state import saving_checkpoint, saving_hooks

_notes: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()  # of each checkpoint
_readers: WeakKeyDictionary[Any, Iterator[Any]] = WeakKeyDictionary()  # of each recomputation


def as_first(answer: Callable[[], Any]) -> Any:
    """Return an answer, or in the recomputation of a checkpoint (use_reentrant=False) that of the first run."""
    if torch.compiler.is_compiling():
        return answer()
    hooks = saving_hooks(True)
    if hooks is None:
        return answer()
    checkpoint, again = saving_checkpoint(hooks[0])
    if checkpoint is None:
        return answer()
    if not again:
        noted = answer()
        _notes.setdefault(checkpoint, []).append(noted)
        return noted
    reader = _readers.setdefault(hooks[0], iter(_notes.get(checkpoint, ())))
    try:
        return next(reader)
    except StopIteration:  # it does more than the first run did, of which the checkpoint will complain
        return answer()
