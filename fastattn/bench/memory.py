"""Memory that stays with the process, so that times do not depend on who pays for fresh pages."""

import ctypes
import platform


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, so that no rival is charged for pages it gets anew at each call; say
    whether.

    By default glibc gives large blocks back to the system when they are freed. Whether a rival then pays for
    fresh, zeroed pages at every call depends on the order of its sizes (measured: eager SCSA's forward at
    8x64x56x56 took 2.7 times as long, that of torch.compile not a bit longer), which says nothing about the
    implementations.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # from malloc.h
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(mmap_threshold, 1 << 30) and libc.mallopt(trim_threshold, (1 << 31) - 1))
