"""Modules on the list of a pyramid's maps: an attention on some of the levels, or one on each."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

MakeNeck = Callable[[Sequence[int]], nn.Module]  # the levels' channels -> a module on the list of their maps

POSITIONS = {"shallow": slice(0, 3), "deep": slice(-3, None), "all": slice(None)}


class OnLevels(nn.Module):
    """Apply a module on a list of maps to some levels of the maps [(B, C_i, H_i, W_i)], from `start` to before `stop`,
    and pass the others through.

    Raises ValueError unless 0 <= start < stop; in forward, for fewer than `stop` maps.
    """

    def __init__(self, attention: nn.Module, start: int, stop: int):
        super().__init__()
        if not 0 <= start < stop:
            raise ValueError(f"levels must be 0 <= start < stop, got start {start} and stop {stop}")
        self.attention, self.start, self.stop = attention, start, stop

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if len(maps) < self.stop:
            raise ValueError(f"levels {self.start} to {self.stop - 1} need {self.stop} maps, got {len(maps)}")
        return [*maps[: self.start], *self.attention(maps[self.start : self.stop]), *maps[self.stop :]]

    def extra_repr(self) -> str:
        return f"start={self.start}, stop={self.stop}"


class PerLevel(nn.ModuleList):
    """Apply one module to each of the maps [(B, C_i, H_i, W_i)], in order; ValueError for another number of maps."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [attention(x) for attention, x in zip(self, maps, strict=True)]


def span(levels: str | slice, count: int) -> tuple[int, int]:
    """The start and stop of a position's name or a slice among `count` levels; ValueError for one that is unknown,
    empty or has a step."""
    if isinstance(levels, str) and levels not in POSITIONS:
        raise ValueError(f"unknown levels {levels!r}: a slice or one of {', '.join(POSITIONS)}")
    start, stop, step = (POSITIONS[levels] if isinstance(levels, str) else levels).indices(count)
    if step != 1 or start >= stop:
        raise ValueError(f"levels must be neighbours, at least one of {count}, got {levels}")
    return start, stop
