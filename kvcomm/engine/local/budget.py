"""One budget for all KV on a device, and who has to make room for whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# The most that each of these may fill of the budget, and that whole sequences may fill of the last.
SEGMENTS, OFFSETS, PREFIX = 1 / 8, 1 / 4, 1 / 20
WHOLE = 1 / 10


@dataclass
class Budget:
    """`limit` bytes for sequences in use, the segment cache, offsets and the prefix cache.

    Sequences may take everything but what is pinned in the segment cache: a call that runs is worth
    more than what might be reused. Each of the others may fill its share of the limit, as far as
    those named before it leave room. What finds no room is computed when it is needed.
    """

    limit: int
    sequences: Callable[[], int] = int  # none
    retained: Callable[[], int] = int
    segments: Callable[[], int] = int
    offsets: Callable[[], int] = int
    prefix: Callable[[], int] = int

    @property
    def short(self) -> bool:
        """Whether more is in use than the limit."""
        used = self.sequences() + self.segments() + self.offsets() + self.prefix()
        return used > self.limit

    def for_sequences(self) -> int:
        """Bytes that sequences may have."""
        return self.limit - self.retained()

    def for_segments(self) -> int:
        """Bytes that base KV may have."""
        return self._left(SEGMENTS, self.sequences())

    def for_offsets(self) -> int:
        """Bytes that offset models may have."""
        return self._left(OFFSETS, self.sequences() + self.segments())

    def for_prefix(self) -> int:
        """Bytes that the prefix cache may have."""
        return self._left(PREFIX, self.sequences() + self.segments() + self.offsets())

    def _left(self, share: float, taken: int) -> int:
        return max(0, min(int(self.limit * share), self.limit - taken))
