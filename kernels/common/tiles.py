"""Block sizes: powers of two, chosen from a call's sizes so that a tile stays in registers and a GPU is filled.

Elements of a tile follow the warps: 4 warps hold 2,048 (16 a thread), 8 hold 4,096.
"""

from math import gcd

TILE = 4096
COLUMNS = 64  # of x in one block, where windows allow
REGISTERS = 128  # of a thread, at most, for a multiprocessor to hold 16 warps
SEGMENT = 64  # bytes of neighbouring channels that a channels_last block reads


def power(n: int) -> int:
    """Return the least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def warps(elements: int) -> int:
    """Return the warps for a tile of this many elements."""
    return 8 if elements > 2048 else 4


def alignment(size: int) -> int:
    """Return the largest power of two, at most 16, that divides a size."""
    return gcd(size, 16)


def columns_per_block(width: int, window: int, most: int = COLUMNS) -> int:
    """Return how many columns of x one program reads: all, or whole windows that start where loads are aligned."""
    if width <= most:
        return power(width)
    windows = max(1, most // window)
    return window * (windows - windows % 8 if windows > 8 else windows)


def fit(limit: int, *wanted: int) -> list[int]:
    """Return powers of two that cover what is wanted, the first first, while their product is within the limit."""
    sizes = []
    for size in wanted:
        sizes.append(min(power(size), limit))
        limit //= sizes[-1]
    return sizes


def attention_rows(channels: int, head: int, limit: int = TILE, most: int = 32) -> tuple[int, int]:
    """Return how many channels a tile of the attention has as rows, and the columns that cover their heads."""
    rows = min(power(channels), most)
    while True:
        if head % rows == 0:
            span = head
        elif rows % head == 0:
            span = rows
        else:
            span = rows + 2 * head
        columns = power(min(span, channels))
        if rows * columns <= limit or rows == 1:
            return rows, columns
        rows //= 2


def attention_pixels(pooled: int, columns: int) -> int:
    """Return how many pooled pixels the attention takes at once: a product's least, or one where they are fewer.

    Beyond 128 columns a product's values would not stay in registers.
    """
    return 16 if pooled >= 16 and 16 <= columns <= 128 else 1
