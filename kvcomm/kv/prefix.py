"""The prefix cache: sequences whose leading tokens were computed before, exact KV only.

Entries are the buffers of sequences, open or closed, with keys as rotated (a round trip through
bf16 would round), found by comparing their token ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvcomm.kv.tensor import KVBuffer
from kvcomm.prompt import common_prefix

BLOCK = 16


@dataclass(eq=False)
class _Entry:
    """`shared` leading tokens stay when the rest goes; of an entry that `is_shared`, none.

    While a sequence holds the buffer it costs the cache nothing, and letting go of it frees
    nothing. One that `continues` is a conversation's: it counts as shared, until a longer sequence
    begins with it.
    """

    buffer: KVBuffer
    namespace: str
    shared: int
    held: bool
    ids: list[int] = field(default_factory=list)
    is_shared: bool = False
    continues: bool = False

    @property
    def nbytes(self) -> int:
        return 0 if self.held else self.buffer.nbytes


class PrefixCache:
    """Longest exact prefix by token ids, per namespace, under a byte budget (LRU).

    The budget bounds the buffers that no open sequence holds, and `whole` is the share of it that
    whole sequences may fill. What has to go leaves its shared prefix, and its buffer shrinks to
    that: a prompt's end is rarely seen again, its beginning with every task.

    Prefixes shorter than one block of 16 tokens are not found. Not thread-safe: the engine's
    thread owns it.
    """

    def __init__(self, budget: Callable[[], int], whole: float = 1.0) -> None:
        self._budget = budget
        self._whole = whole
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def insert(
        self,
        buffer: KVBuffer,
        ids: Sequence[int],
        *,
        exact: bool,
        namespace: str = "",
        shared: int = 0,
        held: bool = False,
        continues: bool = False,
    ) -> None:
        """Offer the first `len(ids)` slots of `buffer`; called again as its sequence grows.

        They must never be written again. `shared` of them are the template's beginning. A sequence
        that is open has `held` its buffer: call `leave` when it ends. All of a conversation that
        `continues` is kept like a shared prefix. Raises `ValueError` for KV that is not exact.
        """
        if not exact:
            raise ValueError("only exact KV may enter the prefix cache")
        entry = self._entries.get(id(buffer))
        if entry is None:
            alone = shared >= len(ids) and not held  # nothing else will ever be in it
            shared = shared // BLOCK * BLOCK
            if alone or continues or 2 * shared > buffer.capacity:  # not worth a copy
                shared = 0
            whole = alone or continues
            entry = _Entry(buffer, namespace, shared, held, is_shared=whole, continues=continues)
        self._enter(entry, ids)

    def _enter(self, entry: _Entry, ids: Sequence[int]) -> None:
        key = id(entry.buffer)
        if key not in self._entries:
            if entry.nbytes > self._budget():
                return
            self._entries[key] = entry
        self._entries.move_to_end(key)
        entry.ids = list(ids)
        self.trim()

    def match(self, ids: Sequence[int], namespace: str = "") -> tuple[KVBuffer, int] | None:
        """The buffer that holds the longest known prefix of `ids`, and how many tokens it holds."""
        best, length, wanted = None, BLOCK - 1, list(ids)
        for entry in self._entries.values():
            if entry.namespace == namespace and entry.ids[: length + 1] == wanted[: length + 1]:
                found = common_prefix(entry.ids, wanted)
                if found > length:
                    best, length = entry, found
        if best is None:
            return None
        self._entries.move_to_end(id(best.buffer))
        return best.buffer, length

    def leave(self, buffer: KVBuffer, *, keep: bool = True) -> None:
        """The sequence of `buffer` has ended: what is kept of it takes room from now on."""
        entry = self._entries.get(id(buffer))
        if entry is None:
            return
        if not keep:
            self._drop(entry)
            return
        if entry.continues:
            self._supersede(entry)
            buffer.shrink(len(entry.ids))
        entry.held = False
        self.trim()

    def _supersede(self, longer: _Entry) -> None:
        """Drop the earlier turns of a conversation whose latest sequence has ended."""
        for entry in list(self._entries.values()):
            over = entry.continues and not entry.held and entry.namespace == longer.namespace
            if over and entry is not longer and longer.ids[: len(entry.ids)] == entry.ids:
                self._drop(entry)

    def trim(self) -> None:
        """Let go of what there is no room for any more."""
        while entry := self._next_to_go():
            self._drop(entry)
            ids = entry.ids[: entry.shared]
            if not ids:
                continue
            known = self.match(ids, entry.namespace)
            if known is None or known[1] < len(ids):
                entry.buffer.shrink(len(ids))
                self._enter(_Entry(entry.buffer, entry.namespace, 0, False, is_shared=True), ids)

    def _next_to_go(self) -> _Entry | None:
        """The least recently used of those that take room, while they take too much."""
        budget = self._budget()
        free = [entry for entry in self._entries.values() if not entry.held]
        rows = [entry for entry in free if not entry.is_shared]
        if sum(entry.nbytes for entry in rows) > budget * self._whole:
            return rows[0]
        return free[0] if self.nbytes > budget else None

    def _drop(self, entry: _Entry) -> None:
        del self._entries[id(entry.buffer)]

    def clear(self, namespace: str | None = None) -> None:
        """Forget everything, or everything of one namespace."""
        for entry in list(self._entries.values()):
            if namespace is None or entry.namespace == namespace:
                self._drop(entry)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers that no sequence holds."""
        return sum(entry.nbytes for entry in list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)
