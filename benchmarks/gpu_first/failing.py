"""Rows that fail as rows may on a GPU, to rehearse with."""

import os
import time
from typing import Any


def raises() -> dict[str, Any]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered (as rehearsed)")


def dies() -> dict[str, Any]:
    os._exit(3)


def hangs() -> dict[str, Any]:
    time.sleep(3600)
    return {"ok": True}
