"""`python -m fastattn info [--bug-report]`: versions, the state of the extension, and who serves what.
`python -m fastattn bench TABLE`: one of the papers' throughput tables, measured on this machine.
`python -m fastattn report RESULT.json [OTHER.json ...] -o DIR`: results as tables, plots and a page.
`python -m fastattn explain-model BACKBONE --attention NAME -o DIR`: what a stage of a network looks at.
`python -m fastattn build-ops [-o DIR]`: the operators as a library for C++."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from . import __version__, available_backends, get_backend
from .core import backends, native

USAGE = (
    "usage: python -m fastattn info [--bug-report] | bench TABLE | report RESULT.json [OTHER.json ...] -o DIR | "
    "explain-model BACKBONE --attention NAME -o DIR | build-ops [-o DIR]"
)


def info() -> str:
    """Return what a bug report needs: versions, devices, backends, and why those that cannot serve cannot."""
    state, detail = native.status()
    if state == "ok":
        isa = native.extension()
        detail = f"instruction set {isa.isa()} of {', '.join(isa.isa_levels())}"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "not installed"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [
        f"fastattn   {__version__}",
        f"python     {platform.python_version()}, {platform.platform()}",
        f"torch      {torch.__version__}, {torch.get_num_threads()} threads",
        f"triton     {triton}",
        f"GPU        {', '.join(devices) or 'none'}",
        f"extension  {state}: {detail}",
        f"backend    {get_backend()} (FASTATTN_BACKEND={os.environ.get('FASTATTN_BACKEND', '')})",
        f"available  {', '.join(available_backends())}",
    ]
    for device in ("cpu", "cuda") if devices else ("cpu",):
        for operation in backends.operations():
            call = backends.Call(operation, device)
            lines.append(f"{operation} on {device}, float32: {backends.choose('auto', *call)}")
            reasons = {name: backends.unsupported_reasons(name, call) for name in backends.BACKENDS}
            lines += [f"  not {name}: {'; '.join(why)}" for name, why in reasons.items() if why]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run one command and return its exit status."""
    if argv == ["info"]:
        print(info())
        return 0
    if argv == ["info", "--bug-report"]:
        from .bug_report import report as bug_report

        print(bug_report(info()))
        return 0
    if argv[:1] == ["bench"]:
        from .bench.command import main as bench

        return bench(argv[1:])
    if argv[:1] == ["report"]:
        from .report import main as report

        return report(argv[1:])
    if argv[:1] == ["explain-model"]:
        from .explain_model import main as explain_model

        return explain_model(argv[1:])
    if argv[:1] == ["build-ops"]:
        from .build_ops import main as build_ops

        return build_ops(argv[1:])
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
