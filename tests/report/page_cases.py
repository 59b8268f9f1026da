"""A page with tables and plots as reports have them, with invented figures."""

import io
from dataclasses import dataclass

from matplotlib.figure import Figure

from fastattn.report.page import page
from fastattn.report.table import Table


@dataclass(frozen=True)
class Drawn:
    title: str
    svg: str


def draw(title: str) -> Drawn:
    """A bar chart of matplotlib's, with clipping and glyphs that every figure calls by the same ids."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axis = figure.subplots()
    names = ["none", "SE", "ECA", "CBAM", "CA", "SCSA eager", "SCSA compiled", "SCSA fast"]
    bars = axis.barh(names, [24.3, 23.9, 23.6, 18.2, 20.4, 20.1, 21.7, 23.6], color="#c1501f")
    axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axis.plot([24.3, 24.3], [-0.5, 7.5], linestyle=":", color="#888888")
    axis.set_title(title, loc="left", fontsize=10)
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return Drawn(title, stream.getvalue())


CELLS = ["3.73 (2%)", "11.5×", "failed: out of memory", "≥ 4", "-", "16.8 (missed)", "0.95", "100"]
RISING = ["0.95", "3.73 (2%)", "≥ 4", "11.5×", "16.8 (missed)", "100", "failed: out of memory", "-"]
FALLING = ["100", "16.8 (missed)", "11.5×", "≥ 4", "3.73 (2%)", "0.95", "failed: out of memory", "-"]
NAMES = ["resnet50", "resnet18", "Swin", "resnet101", "-", "mobilenetv2_100", "élan", "(8, 64, 56, 56)"]
NAMES_RISING = ["(8, 64, 56, 56)", "mobilenetv2_100", "resnet18", "resnet50", "resnet101", "Swin", "élan", "-"]
TIES = ["1", "2", "1", "2", "1", "2", "1", "2"]


def sortable() -> Table:
    rows = list(zip(NAMES, CELLS, TIES, strict=True))
    return Table("What cells look like", ("model", "measured", "levels"), rows, ["-: not measured."])


def throughput() -> Table:
    """As wide and as long as the backbones' table is."""
    columns = ("model", "attention", "params (M)", "multiply-adds (G)", "paper's top-1 (%)")
    columns += tuple(f"{name} images/s" for name in ("eager", "compile", "native"))
    columns += ("native vs eager", "native vs compile", "where it is placed")
    rows = []
    for place in range(40):
        rate = 24.3 - 0.37 * place
        speeds = (f"{rate:.1f} (2%)", f"{1.1 * rate:.1f} (6%, noisy)", f"{1.2 * rate:.1f} (1%)", "1.20×", "1.09×")
        model = f"{('resnet', 'swin_tiny_patch4_window7_224-')[place % 2]}{18 + place}"
        name, paper = ("SE", "ECA", "CBAM")[place % 3], "-" if place % 4 else "77.5"
        rows.append((model, name, "28.07", "4.13", paper, *speeds, "at the output of each block, before the addition"))
    return Table("scsa-backbones", columns, rows, ["images/s: by the median, with its spread.", "A second note."])


def realistic() -> str:
    facts = {
        "machine": "Intel(R) Xeon(R) Processor; threads: 2; native: avx512",
        "versions": "torch 2.15.0, triton 3.9.0, timm 1.0.31, fastattn 0.1.0",
        "commit": "73885214e74361cbf952d77307e9a193dfcaeed6",
        "protocol": "224 x 224, batch 8, 5 repeats, float32, contiguous, photographs; rivals timed in turns",
    }
    warnings = ["The clocks moved by 4.1% while scsa-backbones ran."]
    plots = [draw("Throughput by attention"), draw("Scaling with the batch")]
    return page("Measured results", facts, warnings, [sortable(), throughput()], plots)
