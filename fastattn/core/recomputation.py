"""What a checkpoint's recomputation has to do as its first run did, whatever has been set since.

torch.utils.checkpoint keeps the arguments of what it runs again, the state of random numbers and autocast, and nothing
of others: answers that depend on more are noted in the first run, in their order, and given again.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .torch_state import saving_checkpoint, saving_hooks

_notes: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()  # of each checkpoint
_readers: WeakKeyDictionary[Any, Iterator[Any]] = WeakKeyDictionary()  # of each recomputation


def as_first(answer: Callable[[], Any]) -> Any:
    """Return an answer, or in the recomputation of a checkpoint (use_reentrant=False) that of the first run.

    Of checkpoints in one another, each notes what was answered within it: where an outer one runs again, an inner one
    runs for the first time.
    """
    if torch.compiler.is_compiling():
        return answer()
    hooks = saving_hooks()
    if not hooks:
        return answer()
    found = [(pack, *saving_checkpoint(pack)) for pack, _ in hooks]
    readers = [_readers.setdefault(pack, iter(_notes.get(noting, ()))) for pack, noting, again in found if again]
    given = [noted for reader in readers for noted in itertools.islice(reader, 1)]
    noted = given[0] if given else answer()  # none where it does more than the first run did: the checkpoint complains
    for _, noting, again in found:
        if noting is not None and not again:
            _notes.setdefault(noting, []).append(noted)
    return noted
