"""Names of files, from titles."""

import re
import unicodedata
from collections.abc import Iterable


def slug(title: str) -> str:
    """Lower case with dashes, without what a file name cannot have."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:80] or "unnamed"


def unique_slugs(titles: Iterable[str]) -> list[str]:
    """A name for each title; a number is appended to the second of the same name."""
    found: dict[str, None] = {}
    for title in titles:
        base = name = slug(title)
        count = 1
        while name in found:
            count += 1
            name = f"{base}-{count}"
        found[name] = None
    return list(found)
