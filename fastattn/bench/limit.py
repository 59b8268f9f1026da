"""A limit on work that may take too long, such as a compiler's search."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN = 10.0  # seconds after which it is said again, where something swallowed it


class TimeUp(BaseException):
    """The limit has passed; no Exception, since compilers catch those and carry on in another way."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the block once the seconds have passed; only in the main thread, between two bytecodes."""

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
