"""What the papers themselves print, kept apart from what is measured here: figures seen in a source, which is named.

A field that is None was not found, and is not estimated. Not found at all, and so without rows or fields:

- SCSA (arXiv 2407.05128): Table 2's images per second, top-1 and multiply-adds, its rows of other attentions but for
  ResNet-50's parameters; Table 1; the GPU that the throughput was measured on;
- CFSAM (arXiv 2510.14726): Table 4's other attentions but for SE's parameters, and every frame rate;
- LGA (arXiv 2411.09604): all tables; its MobileNetV3 and ResNet-18 are small detectors' backbones, not timm's models;
- ResNet-50 on ImageNet in the papers of SE, CBAM, CA, ELA, EMA and CPCA, and FcaNet's parameters.
"""

from dataclasses import dataclass

SCSA = "arXiv 2407.05128, Table 2"
CFSAM = "arXiv 2510.14726, Table 4 and abstract"
ECA = "github.com/BangguWu/ECANet, README"
SA = "github.com/wofmanaf/SA-Net, README"
FCA = "github.com/cfzd/FcaNet, README, column Reported"
CA = "github.com/Andrew-Qibin/CoordAttention, README"
EMA = "github.com/YOLOonMe/EMA-attention-module, README"
SE = "github.com/hujie-frank/SENet, README"
CBAM = "github.com/Jongchan/attention-module, README"

# The authors' tools/analysis_tools/get_throughput.py, as its defaults have it.
SCSA_PROTOCOL = "released script: batch 64 of 3 x 224 x 224 in fp32, eval, 30 timed passes after 50 of warming up"
SHARE = f"share from the loss in whole percent that is known of Table 2; {SCSA_PROTOCOL}"
MEBI = "the parameters are in units of 2**20"
RELEASED = "the authors' released checkpoint, not the paper's figure"
IOU = "mAP as the abstract prints it, which states no IoU threshold"


@dataclass(frozen=True)
class PaperFigure:
    """One row of a paper's table; None is a figure that was not found.

    `parameters_m` is in millions, `multiply_adds_g` in 1e9 an image (what the papers call FLOPs), `images_per_s` in
    images per second, `share_of_plain` that of the plain model's images per second (0 to 1), `top1` ImageNet-1K top-1
    accuracy in percent, `voc_map` and `coco_map` mean average precision in percent. `source` is where it was read.
    """

    table: str
    model: str
    attention: str
    variant: str | None = None
    parameters_m: float | None = None
    multiply_adds_g: float | None = None
    images_per_s: float | None = None
    share_of_plain: float | None = None
    top1: float | None = None
    voc_map: float | None = None
    coco_map: float | None = None
    source: str = ""
    note: str = ""


def scsa(model: str, attention: str, parameters_m: float, share: float | None = None, note: str = "") -> PaperFigure:
    """A row of SCSA's table of backbones: parameters in millions, throughput as a share of the plain model's."""
    return PaperFigure(
        "scsa-backbones", model, attention, None, parameters_m, share_of_plain=share, source=SCSA, note=note
    )


def rival(
    model: str,
    attention: str,
    variant: str | None,
    parameters_m: float | None,
    multiply_adds_g: float | None,
    top1: float | None,
    source: str,
    note: str = "",
) -> PaperFigure:
    """A row of another attention's own authors: parameters in millions, multiply-adds in 1e9, top-1 in percent."""
    return PaperFigure(
        "rivals", model, attention, variant, parameters_m, multiply_adds_g, top1=top1, source=source, note=note
    )


# What Table 2 of SCSA counts for the other attentions in ResNet-50, in millions.
RESNET50 = {"se": 28.07, "eca": 25.56, "cbam": 28.07, "fca": 28.07, "cpca": 27.40, "sa": 25.56, "ela": 25.59}
RESNET50 |= {"ca": 25.69, "ema": 25.57}

# Trainings differ from paper to paper, so "rivals" is a table of its own. Its variants: None, what authors print of
# their own attention; an attention's name, what its authors print of a baseline or of another; "released", the
# accuracy of a released checkpoint; a number of epochs, a second training. SE prints errors: top-1 is 100 - error.
FIGURES: tuple[PaperFigure, ...] = (
    scsa("resnet50", "none", 25.56),
    scsa("resnet50", "scsa", 25.62, 0.83, SHARE),
    *(scsa("resnet50", attention, millions) for attention, millions in RESNET50.items()),
    scsa("resnet101", "none", 44.55),
    scsa("resnet101", "scsa", 44.68),
    scsa("mobilenetv2_100", "none", 3.51),
    scsa("mobilenetv2_100", "scsa", 3.63, 0.41, SHARE),
    scsa("repvgg_a0", "none", 9.11),
    scsa("repvgg_a0", "scsa", 9.18),
    scsa("swin_tiny_patch4_window7_224", "none", 28.29),
    scsa("swin_tiny_patch4_window7_224", "scsa", 28.36),
    PaperFigure(
        "cfsam-ssd300", "ssd300_vgg16", "none", None, 26.29, voc_map=75.5, coco_map=43.1, source=CFSAM, note=IOU
    ),
    PaperFigure("cfsam-ssd300", "ssd300_vgg16", "se", None, 26.51, source=CFSAM),
    PaperFigure(
        "cfsam-ssd300", "ssd300_vgg16", "cfsam", None, 45.16, 45.22, voc_map=78.6, coco_map=52.1, source=CFSAM, note=IOU
    ),
    rival("resnet50", "none", "eca", 24.37, 3.86, None, "arXiv 1910.03151, abstract", MEBI),
    rival("resnet50", "eca", None, 24.37, 3.86, 77.48, ECA, MEBI),
    rival("resnet101", "eca", None, 42.49, 7.35, 78.65, ECA, MEBI),
    rival("mobilenetv2_100", "eca", None, 3.34, 0.3199, 72.56, ECA, MEBI),
    rival("resnet50", "none", "sa", 25.56, 4.12, None, "arXiv 2102.00240, abstract", "SA: over 1.34 points more top-1"),
    rival("resnet50", "sa", "released", 25.56, None, 77.88, SA, RELEASED),
    rival("resnet101", "sa", "released", 44.55, None, 78.95, SA, RELEASED),
    rival("resnet50", "none", "fca", None, None, 77.27, "github.com/cfzd/FcaNet, issue 36, on the paper's Table 1"),
    rival("resnet50", "fca", None, None, None, 78.52, FCA, "label smoothing and a cosine schedule"),
    rival("resnet101", "fca", None, None, None, 79.64, FCA, "label smoothing and a cosine schedule"),
    rival("resnet50", "se", "released", None, None, 77.63, SE, RELEASED),
    rival("resnet101", "se", "released", None, None, 78.25, SE, RELEASED),
    rival("resnet50", "cbam", "released", None, None, 77.622, CBAM, RELEASED),
    rival("mobilenetv2_100", "none", "ca", 3.5, 0.300, 72.3, CA, "200 epochs"),
    rival("mobilenetv2_100", "se", "ca", 3.89, 0.300, 73.5, CA, "200 epochs"),
    rival("mobilenetv2_100", "cbam", "ca", 3.89, 0.300, 73.6, CA, "200 epochs"),
    rival("mobilenetv2_100", "ca", None, 3.95, 0.310, 74.3, CA, "200 epochs"),
    rival("mobilenetv2_100", "none", "ema", 3.504, 0.30079, 72.192, EMA, "200 epochs"),
    rival("mobilenetv2_100", "ema", "200 epochs", None, 0.302, 72.55, EMA, "200 epochs"),
    rival("mobilenetv2_100", "ema", None, 3.55, 0.306, 74.32, EMA, "400 epochs, beside CA's figures for 200"),
)


def paper_figure(table: str, model: str, attention: str | None, variant: str | None = None) -> PaperFigure | None:
    """The paper's row for a model and an attention (None: "none"), in the units of `PaperFigure`; None if not found."""
    wanted = (table, model, attention or "none", variant)
    return next((row for row in FIGURES if (row.table, row.model, row.attention, row.variant) == wanted), None)
