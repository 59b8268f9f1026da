"""Triton's launch path without a GPU: its own driver module and launchers, over a libcuda that computes nothing.

Kernels are specialised, looked up in Triton's cache, compiled, loaded and launched as on a GPU, so that what a run here
leaves in the cache is what a run there finds.
"""

import ctypes
import functools
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

SOURCE = Path(__file__).with_name("standin.c")


@functools.cache
def library() -> Path:
    """Build and load the stand-in for libcuda, with a do-nothing for whatever else Triton's driver links to."""
    import triton.backends.nvidia.driver as nvidia

    folder = Path(tempfile.mkdtemp(prefix="fastattn-standin-"))
    source = SOURCE.read_text()
    wanted = Path(nvidia.__file__).with_name("driver.c").read_text() + Path(nvidia.__file__).read_text()
    others = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", wanted)) - set(re.findall(r"\bcu[A-Z]\w+(?=\()", source)))
    (folder / "standin.c").write_text(source + "".join(f"int {name}(void) {{ return 0; }}\n" for name in others))
    built = folder / "libcuda.so.1"
    options = "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1"
    subprocess.run([os.environ.get("CC", "cc"), *options, "-o", built, folder / "standin.c"], check=True)
    ctypes.CDLL(str(built), mode=ctypes.RTLD_GLOBAL)
    return built


@contextmanager
def driver(arch: int) -> Iterator[Counter[str]]:
    """Launch on the stand-in inside, CPU tensors too; count `hit` and `miss` of Triton's cache, and `launch`.

    RuntimeError under TRITON_INTERPRET=1, where nothing is compiled.
    """
    import torch

    torch.cuda.is_available()  # asks the true libcuda, before another one has its name
    import triton
    from triton.backends.compiler import GPUTarget

    from fastattn.core import backends
    from fastattn.kernels.common.launch import Launch

    if triton.knobs.runtime.interpret:
        raise RuntimeError("under TRITON_INTERPRET=1 nothing is compiled")
    counts: Counter[str] = Counter()
    triton.knobs.nvidia.libcuda_path = str(library().parent)
    from triton.backends.nvidia.driver import CudaDriver

    stand_in: Any = CudaDriver()
    stand_in.get_current_device = lambda: 0
    stand_in.get_current_stream = lambda device: 0
    stand_in.get_current_target = lambda: GPUTarget("cuda", arch, 32)

    def listen(*, cache_hit: bool, **_: Any) -> None:
        counts["hit" if cache_hit else "miss"] += 1

    launch = Launch.__call__

    def counted(self: Launch, arguments: Any) -> None:
        counts["launch"] += 1
        launch(self, arguments)

    active, listener = triton.runtime.driver._active, triton.knobs.compilation.listener
    triton.runtime.driver.set_active(stand_in)
    triton.knobs.compilation.listener = listen
    backends._choose.cache_clear()
    try:
        with patch.dict(backends.BACKENDS, triton=lambda call: []), patch.object(Launch, "__call__", counted):
            yield counts
    finally:
        triton.runtime.driver._active, triton.knobs.compilation.listener = active, listener
        backends._choose.cache_clear()
