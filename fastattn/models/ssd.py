"""Where an attention sits inside torchvision's SSD: between the backbone's pyramid and the head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .levels import MakeNeck, OnLevels


class NeckAndHead(nn.Module):
    """Run a neck on the pyramid's maps before the two parts of SSD's head, which keep torchvision's names."""

    def __init__(self, head: Any, neck: nn.Module):
        super().__init__()
        self.classification_head = head.classification_head
        self.regression_head = head.regression_head
        self.neck = neck

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        maps = self.neck(maps)
        return {"bbox_regression": self.regression_head(maps), "cls_logits": self.classification_head(maps)}


def place_in_ssd(model: Any, make: MakeNeck, start: int, stop: int) -> None:
    """Behind the backbone, where SSD hands the list of its maps to the head."""
    channels = [scores.in_channels for scores in model.head.classification_head.module_list]
    model.head = NeckAndHead(model.head, OnLevels(make(channels[start:stop]), start, stop))
