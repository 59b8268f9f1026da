"""What a result says about itself: the machine, the versions, the commit, and how it was measured."""

from collections.abc import Mapping
from typing import Any

PROTOCOL = {  # how a protocol's entries read; others as they are named
    "batches": "batch {}",
    "sizes": "size {}",
    "repeats": "{} repeats",
    "dtype": "{}",
    "format": "{}",
    "work": "{}",
    "inputs": "{}",
    "warm_up": "{} calls to warm up",
    "compiled": "{}",
    "tf32": "TF32 in {}",
    "amp": "autocast to {}",
}
COMPILED = {
    "all": "torch.compile in every row",
    "none": "without torch.compile",
}


def on_gpu(result: Mapping[str, Any]) -> bool:
    """Whether the rivals ran on a GPU."""
    return result["fastattn"].get("device") == "cuda"


def facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Machine, system, versions, commit, date and protocol, by name; what the result does not say is left out."""
    machine, ours = result.get("machine_info") or {}, result["fastattn"]
    named = {
        "machine": "; ".join(gpu_facts(machine) if on_gpu(result) else cpu_facts(machine)),
        "system": ", Python ".join(filter(None, (machine.get("system"), machine.get("python")))),
        "freed memory": "" if on_gpu(result) else machine.get("freed_memory") or "",
        "versions": ", ".join(f"{name} {version}" for name, version in (machine.get("versions") or {}).items()),
        "commit": commit(result),
        "date": str(result.get("datetime") or "").partition(".")[0].replace("T", " "),
        "measured": ", ".join(map(str, [ours.get("selection") or "", *(ours.get("tables") or [])])).strip(", "),
        "protocol": "; ".join([*protocol_facts(result), how_timed(result)]),
    }
    return {name: fact for name, fact in named.items() if fact}


def protocol(result: Mapping[str, Any]) -> str:
    """The machine, the versions, and how the numbers came about, in two sentences."""
    machine = result.get("machine_info") or {}
    versions = machine.get("versions") or {}
    gpu, which = on_gpu(result), commit(result)
    names = ("torch", "triton", "fastattn") if gpu else ("torch", "fastattn")
    known = [
        *(gpu_facts(machine) if gpu else cpu_facts(machine)),
        *(f"{name} {versions[name]}" for name in names if name in versions),
        *([f"commit {which}"] if which else []),
    ]
    memory = "" if gpu else f"; memory that they free is {machine.get('freed_memory', '?')}"
    return f"{'; '.join(known)}. {how_timed(result).capitalize()}{memory}."


def how_timed(result: Mapping[str, Any]) -> str:
    by_median = on_gpu(result) or "protocol" in result["fastattn"]
    return f"rivals timed in turns, {'median' if by_median else 'least'} of the rounds"


def protocol_facts(result: Mapping[str, Any]) -> list[str]:
    """The protocol of `bench`, entry by entry."""
    known = result["fastattn"].get("protocol") or {}
    entries = {name: value for name, value in known.items() if value not in (None, [])}
    if "compiled" in entries:
        entries["compiled"] = COMPILED.get(entries["compiled"], f"torch.compile in {entries['compiled']} rows")
    return [PROTOCOL.get(name, "{name} {}").format(listed(value), name=name) for name, value in entries.items()]


def listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def commit(result: Mapping[str, Any]) -> str:
    """The first twelve digits of the commit, and whether files differed from it."""
    info = result.get("commit_info") or {}
    known = info.get("id")
    if not known or known == "unknown":
        return ""
    return known[:12] + (" with changes that are not committed" if info.get("dirty") else "")


def cpu_facts(machine: Mapping[str, Any]) -> list[str]:
    return [
        machine.get("cpu") or "unknown CPU",
        f"threads: {machine.get('threads', '?')}",
        f"native: {machine.get('isa', '?')}",
    ]


def gpu_facts(machine: Mapping[str, Any]) -> list[str]:
    details = machine.get("gpu_details") or {}
    clocks = ", ".join(f"{name} {mhz:g} MHz" for name, mhz in (details.get("clocks_mhz") or {}).items())
    return [
        machine.get("gpu") or "unknown GPU",
        *([f"driver {details['driver']}"] if details.get("driver") else []),
        *([f"clocks after the rounds: {clocks}"] if clocks else []),
        *([f"CUDA {details['cuda']}"] if details.get("cuda") else []),
    ]
