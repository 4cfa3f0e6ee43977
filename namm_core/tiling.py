"""How work on heads of unequal length is cut, so that it stays in a processor's cache: attention's and the scorer's.

Knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator

QUERIES = 128
"""Queries in a tile, while one head's still fit: longer tiles have better matrix products."""


def grouped(widths: list[int], room: int) -> Iterator[tuple[slice, int]]:
    """Consecutive heads whose tokens, padded to the fullest one's, are no more than `room`: slice and width.

    widths: tokens of each head. A head that is alone may be wider than the room.
    """
    start = 0
    while start < len(widths):
        stop, width = start + 1, widths[start]
        while stop < len(widths) and max(width, widths[stop]) * (stop + 1 - start) <= room:
            width = max(width, widths[stop])
            stop += 1
        yield slice(start, stop), width
        start = stop
