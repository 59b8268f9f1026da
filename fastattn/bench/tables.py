"""What the tables of the papers are made of: the rows of each, as contests that can be timed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import fastattn

from .. import models
from ..models.ablations import SCSA_ABLATIONS, is_fast
from ..models.rivals import RIVALS
from .networks import Detector, prepare
from .photographs import noise, photographs
from .sizes import ACP_SIZES, CAT_SIZES, CONTIGUOUS, LGA_SIZES, MEMORY_FORMATS, SSD_LEVELS, STAGES

NONE = "none"
CLASSES = 21  # of SSD300 on VOC, the background included
QUICK_BACKBONES = ("resnet50", "mobilenetv2_100")
QUICK_ATTENTIONS = (NONE, "se", "eca", "cbam", "ca", "scsa")
COMPARED = tuple(name for name in RIVALS if name != "mhsa")  # which attends over 112 x 112 pixels in some
GATES = "se", "eca", "cbam", "fca", "sa", "ela", "ca"  # rivals that one operation serves
SSD = "ssd300_vgg16"
ENOUGH = 8  # images for the statistics of normalisations


@dataclass(frozen=True)
class Setting:
    """What is the same for all rows of a run: device, dtype, memory format, the batches and the images' sizes (None:
    each table's own)."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    format: str = CONTIGUOUS
    batches: tuple[int, ...] = (8,)
    sizes: tuple[int, ...] | None = None

    def place(self, thing: Any) -> Any:
        """A module, or a tensor, where and as the run wants it; in the memory format what is a map or has maps."""
        thing = thing.to(self.device, self.dtype)
        if isinstance(thing, Tensor):
            return thing.contiguous(memory_format=MEMORY_FORMATS[self.format]) if thing.dim() == 4 else thing
        return thing.to(memory_format=MEMORY_FORMATS[self.format])


@dataclass(frozen=True)
class Subject:
    """What a contest times: a module on its inputs, and the same network without attention where it has one."""

    module: nn.Module
    inputs: tuple[Any, ...]
    plain: nn.Module | None = None


@dataclass(frozen=True)
class Row:
    """One row of a table: what tells it from the others, and how its subject is made.

    `fast` says whether fastattn's kernels serve it: plain networks and some rivals are eager and compiled alone.
    """

    table: str
    attention: str
    shape: tuple[int, ...]
    make: Callable[[Setting], Subject]
    model: str | None = None
    variant: str | None = None
    fast: bool = False
    note: str | None = None

    @property
    def operation(self) -> str:
        """Which operation the kernels serve."""
        return "gates" if self.attention in GATES else self.attention

    @property
    def identity(self) -> dict[str, Any]:
        """What a result file says about it."""
        return {
            "table": self.table,
            "model": self.model,
            "attention": self.attention,
            "variant": self.variant,
            "shape": list(self.shape),
        }

    def __str__(self) -> str:
        parts = (self.model, self.attention, self.variant, "x".join(map(str, self.shape)))
        return " ".join(part for part in parts if part)


Rows = Callable[[Setting], Iterator[Row]]


@dataclass(frozen=True)
class Variant:
    """An attention in a network: its name, what distinguishes it, the arguments of `models.create`, and what to know
    about it beside its place."""

    attention: str
    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = False
    note: str = ""


def own(attention: str, name: str | None = None, **arguments: Any) -> Variant:
    """One of this package's attentions."""
    return Variant(attention, name, {"attention": attention} | arguments, fast=True)


def rival(attention: str) -> Variant:
    """A rival, or no attention."""
    return Variant(attention, None, {"attention": None if attention == NONE else attention}, attention in GATES)


def images(batch: int, size: int) -> Tensor:
    """Photographs where the packages that ship them are installed, else noise."""
    try:
        return photographs(batch, size)
    except ImportError:
        return noise(batch, size)


def network(name: str, arguments: Mapping[str, Any], x: Tensor) -> nn.Module:
    """A network with the same weights each time, with the activations of a trained one."""
    torch.manual_seed(0)
    if name == SSD:
        return prepare(Detector(models.create(name, num_classes=CLASSES, **arguments)), x)
    # transformers are built for one size, and in training the same blocks are to take part each time
    own: dict[str, Any] = {"img_size": x.shape[-1], "drop_path_rate": 0.0} if "patch" in name else {}
    return prepare(models.create(name, **arguments, **own), x)


def make_network(name: str, variant: Variant, batch: int, size: int, setting: Setting) -> Subject:
    """A network with an attention, and without."""
    seen = images(ENOUGH, size)  # whatever the batch

    def build(arguments: Mapping[str, Any]) -> nn.Module:
        return setting.place(network(name, arguments, seen))

    plain = None if variant.attention == NONE else build({})
    return Subject(build(variant.arguments), (setting.place(images(batch, size)),), plain)


def networks(table: str, names: Sequence[str], variants: Callable[[str], Sequence[Variant]], size: int) -> Rows:
    """The rows of a table of networks: each with each of its variants, batch by batch and size by size."""

    def rows(setting: Setting) -> Iterator[Row]:
        order = product(names, setting.batches, setting.sizes or (size,))
        for name, batch, side in order:
            for variant in variants(name):
                make = partial(make_network, name, variant, batch, side)
                place = None if variant.attention == NONE else models.placement_note(name, variant.attention)
                note = f"{place} {variant.note}" if variant.note else place
                shape = batch, 3, side, side
                yield Row(table, variant.attention, shape, make, name, variant.name, variant.fast, note)

    return rows


def classification(own_attention: str) -> Callable[[str], list[Variant]]:
    """No attention, the rivals that fit a backbone, and one of this package's own."""

    def variants(name: str) -> list[Variant]:
        known = models.attentions(name)
        return [rival(NONE), *(rival(other) for other in COMPARED if other in known), own(own_attention)]

    return variants


def scsa_ablations(name: str) -> list[Variant]:
    """SCSA's parts and what its paper tried in their place."""
    made = [
        Variant("scsa", None if label == "SCSA" else label, {"attention": make}, is_fast(label), make.note)
        for label, make in SCSA_ABLATIONS.items()
    ]
    return [rival(NONE), *made]


def cfsam_variants(name: str) -> list[Variant]:
    """CFSAM, its ablations, its positions, and SE on all six levels."""
    return [
        rival(NONE),
        rival("se"),
        own("cfsam", "LFE", attention_kwargs={"depth": 0, "fusion": False}),
        own("cfsam", "LFE + GFE", attention_kwargs={"fusion": False}),
        own("cfsam", "shallow levels", levels="shallow"),
        own("cfsam", "deep levels", levels="deep"),
        own("cfsam"),
    ]


def lga_variants(name: str) -> list[Variant]:
    """No attention, the rivals that fit a backbone, LGA as in the paper and as released."""
    return [*classification("lga")(name), own("lga", "released", attention_kwargs={"contraction": "released"})]


def modules(setting: Setting) -> Iterator[Row]:
    """This package's modules alone, at the sizes that the papers' networks give them."""
    for batch in setting.batches:
        for channels, height, width in STAGES:
            for make in (fastattn.SCSA, fastattn.SMSA, fastattn.PCSA):
                shape: tuple[int, ...] = batch, channels, height, width
                yield one_map(make.__name__.lower(), None, shape, partial(make, channels))
        for channels, heads, side in LGA_SIZES:
            shape, made = (batch, channels, side, side), partial(fastattn.LocalGlobalAttention, channels, heads)
            yield one_map("lga", f"{heads} heads", shape, made)
            yield one_map("lga", f"{heads} heads, released", shape, partial(made, contraction="released"))
        for channels, side in ACP_SIZES:
            shape = batch, channels, side, side
            yield one_map("acp", None, shape, partial(fastattn.AggressiveConvPooling, channels))
        for tokens, concepts, channels in CAT_SIZES:
            align = partial(fastattn.ConceptualAttention, channels, concepts)
            yield one_map("cat", f"{concepts} concepts", (batch, tokens, channels), align)
        tokens, dim = sum(side * side for _, side in SSD_LEVELS), 256
        shape, subject = (batch, tokens, dim), partial(make_cfsam, batch)
        yield Row("modules", "cfsam", shape, subject, variant="tokens of SSD300's levels", fast=True)


def one_map(attention: str, variant: str | None, shape: tuple[int, ...], make: Callable[[], nn.Module]) -> Row:
    """A module on one tensor."""

    def subject(setting: Setting) -> Subject:
        torch.manual_seed(0)
        return Subject(setting.place(make()).eval(), (setting.place(torch.randn(shape)),))

    return Row("modules", attention, shape, subject, variant=variant, fast=True)


def make_cfsam(batch: int, setting: Setting) -> Subject:
    """CFSAM on the maps of SSD300's levels."""
    torch.manual_seed(0)
    module = fastattn.CFSAM([channels for channels, _ in SSD_LEVELS])
    maps = [setting.place(torch.randn(batch, channels, side, side)) for channels, side in SSD_LEVELS]
    return Subject(setting.place(module).eval(), (maps,))


TABLES: dict[str, Rows] = {
    "scsa-backbones": networks(
        "scsa-backbones",
        ("resnet50", "resnet101", "mobilenetv2_100", "repvgg_a0", "swin_tiny_patch4_window7_224"),
        classification("scsa"),
        224,
    ),
    "scsa-ablation": networks("scsa-ablation", ("resnet50",), scsa_ablations, 224),
    "cfsam-ssd300": networks("cfsam-ssd300", (SSD,), cfsam_variants, 300),
    "lga-backbones": networks(
        "lga-backbones", ("resnet18", "mobilenetv3_small_100", "mobilenetv3_large_100"), lga_variants, 224
    ),
    "modules": modules,
    "export-runtimes": networks("export-runtimes", ("resnet50", "mobilenetv2_100"), lambda name: [own("scsa")], 224),
}


TITLES = {
    "scsa-backbones": "Backbones with SCSA and others",
    "scsa-ablation": "SCSA's ablations",
    "cfsam-ssd300": "SSD300 with CFSAM and others",
    "lga-backbones": "Backbones with LGA and others",
    "modules": "Modules alone",
    "export-runtimes": "Backbones in the runtimes that they are exported to",
}


def narrowed(rows: Iterator[Row], names: Sequence[str] | None, attentions: Sequence[str] | None) -> list[Row]:
    """The rows of some networks and attentions alone; ValueError, with the names that are there, for others."""
    every = list(rows)
    for what, wanted, known in (
        ("model", names, [row.model for row in every if row.model]),
        ("attention", attentions, [row.attention for row in every]),
    ):
        if unknown := set(wanted or ()) - set(known):
            raise ValueError(
                f"no {what} {', '.join(sorted(unknown))} in this table, which has {', '.join(dict.fromkeys(known))}"
            )
    return [
        row
        for row in every
        if (names is None or row.model in names) and (attentions is None or row.attention in attentions)
    ]
