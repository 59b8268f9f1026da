"""The answer that a table of networks was made for: how much of the plain network's throughput each attention leaves,
in a sentence, and in a picture of each network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .chart import PAPERS, Panel, attention_label
from .papers import printed
from .result import Record, records
from .rivals import cases, grouped
from .table import number
from .throughput import COMPILED, MODULES, YARDSTICKS, identity, kept

WORDS = {"compile": "compiled", "triton": "Triton"}
Network = tuple[str, int, int, str]  # the model, the batch, the size, the work


@dataclass(frozen=True)
class Answer:
    """What a table says: a sentence, and a panel of bars for each network."""

    table: str
    sentence: str
    panels: list[Panel]


def shares(result: Mapping[str, Any]) -> list[Answer]:
    """One answer for each table of networks in which this package's attentions have shares."""
    made = []
    for table, found in grouped(records(result, "throughput"), lambda r: r["table"]).items():
        if table != MODULES:
            networks = grouped(found, lambda r: (r["model"], r["shape"][0], r["shape"][-1], r["work"]))
            panels = [panel_of(network, some) for network, some in networks.items()]
            made.append(Answer(table, in_words(networks), [panel for panel in panels if panel.groups]))
    return [answer for answer in made if answer.sentence]


def panel_of(network: Network, found: list[Record]) -> Panel:
    """The bars of one network: a group for each attention, the paper's own share last."""
    model, batch, size, work = network
    differing = [name for name in ("dtype", "format") if len({record[name] for record in found}) > 1]
    groups: dict[str, dict[str, float]] = {}
    for members in cases(found, lambda r: attention_label(r, differing)):
        values = kept_by(members.values())
        some = next(iter(members.values()))
        if values and (paper := printed(*identity(some)).get("of_plain")):
            values[PAPERS] = paper
        groups |= {attention_label(some, differing): values} if values else {}
    how = f", {work}" if work != "forward" else ""
    return Panel(f"{model}, batch {batch}, {size} x {size}{how}: share of the plain network", groups, shares=True)


def in_words(networks: Mapping[Network, list[Record]]) -> str:
    """What this package's attentions keep in each network; nothing where none of them has a share."""
    parts: dict[str, list[str]] = {}
    for (model, *_), found in networks.items():
        fast = {record["attention"] for record in found if record["rival"].removesuffix(COMPILED) not in YARDSTICKS}
        whole = [record for record in found if record["attention"] in fast and not record.get("variant")]
        for attention, some in grouped(whole, lambda r: r["attention"]).items():
            if values := kept_by(some):
                paper = printed(*identity(some[0])).get("of_plain")
                own = ", ".join(f"{number(share)} {said(rival)}" for rival, share in values.items())
                papers = f" (its paper: {paper:.3f})" if paper else ""
                parts.setdefault(attention, []).append(f"in {model}: {own}{papers}")
    told = [f"{attention} keeps, {'; '.join(some)}" for attention, some in parts.items()]
    return f"Of the plain network's images per second {'; '.join(told)}." if told else ""


def kept_by(found: Any) -> dict[str, float]:
    """The shares of those that have one, by rival."""
    return {record["rival"]: share for record in found if (share := kept(record)) is not None}


def said(rival: str) -> str:
    """A rival in words."""
    name = rival.removesuffix(COMPILED)
    return f"{WORDS.get(name, name)}{' and compiled' * (rival != name)}"
