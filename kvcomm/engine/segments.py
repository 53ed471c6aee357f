"""The segment cache: base KV of texts and messages, by content, in tiers.

A text may have base KV of two kinds: computed alone, and as prompts have read it: that of the first
one, then the mean of several. An entry is *pending* while its first reader computes it. Behind that
it is a view of that reader's sequence, copied when somebody needs it or the sequence ends. Belongs
to the engine's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvcomm.kv import KV, content_key
from kvcomm.kv.tiers import GONE, Device, Stored, Tier, Tiers
from kvcomm.prompt import Template
from kvcomm.reuse.plan import BaseKind

# Behind the address of a text: computed behind a bare chat header, or read in prompts.
ALONE, READ = "alone", "read"
# The mean of so many contexts is kept: it changes little with more of them.
CONTEXTS = 8
# How many entries that are gone are remembered, with the reason.
REMEMBERED = 1000
NO_ROOM = "no room for its base KV"
NOT_MADE = "its base KV could not be computed"


def text_key(fingerprint: str, namespace: str, ids: Sequence[int]) -> str:
    """The address of a text, whatever its context."""
    return content_key(fingerprint, namespace, "text", tuple(ids))


def template_key(fingerprint: str, namespace: str, template: Template) -> str:
    """The stem of the addresses of a template's literals."""
    return content_key(fingerprint, namespace, "template", template.literals)


class KVSource(Protocol):
    """A sequence whose KV an entry is a view of."""

    def position_free(self, slots: Sequence[int]) -> KV: ...


@dataclass(eq=False)
class Entry(Stored):
    """One entry, in a tier once it is no `view` any more.

    `node` is the agent whose prompt it is from, `contexts` name what stood before the text. A
    `message` goes with its last reader, a text stays while there is room.
    """

    pending: object = None  # the sequence that computes it
    view: tuple[KVSource, Sequence[int]] | None = None
    node: str = ""
    contexts: tuple[str, ...] = ()
    message: bool = False

    @property
    def lasts(self) -> bool:
        """Texts are read again by others; messages are not."""
        return not self.message

    @property
    def about(self) -> Mapping[str, str]:
        """What is kept with it on disk."""
        return {"node": self.node, "contexts": " ".join(self.contexts)}

    @property
    def kind(self) -> BaseKind:
        """What base KV it is."""
        if self.message:
            return "message"
        if self.key.endswith(f".{ALONE}"):
            return "alone"
        return "mean" if len(self.contexts) > 1 else "borrowed"

    def resolve(self, source: KVSource, slots: Sequence[int]) -> None:
        """It is not pending any more: a view of `source`."""
        self.pending, self.view = None, (source, slots)

    @property
    def held(self) -> bool:
        """Whether its KV is a tier's, not another sequence's."""
        return self.pending is None and self.view is None


class SegmentCache:
    """Keeps KV under its key until its `tiers` need the room; `budget` is the device's."""

    def __init__(self, budget: Callable[[], int], lower: Sequence[Tier] = ()) -> None:
        self.budget = budget
        self._entries: dict[str, Entry] = {}
        self._lost: OrderedDict[str, str] = OrderedDict()
        self.tiers = Tiers((Device(budget), *lower), self._forget)
        for key, nbytes, _, about in self.tiers.disk.known() if self.tiers.disk else ():
            contexts = tuple(about.get("contexts", "").split())
            entry = Entry(key, nbytes, node=about.get("node", ""), contexts=contexts)
            self._admit(entry)
            self.tiers.adopt(entry)
        self.tiers.trim()

    def find(self, text: str, *, alone: bool, here: str = "") -> Entry | None:
        """The entry of a text, computed alone, or read in prompts, not only in the context `here`.

        Where no prompt has read it, one that was computed alone will do.
        """
        read = None if alone else self._entries.get(f"{text}.{READ}")
        if read is not None and read.contexts != (here,):
            return read
        return self._entries.get(f"{text}.{ALONE}")

    def wants(self, text: str, context: str) -> bool:
        """Whether the text as it was read in this context would be kept."""
        entry = self._entries.get(f"{text}.{READ}")
        if entry is None:
            return True
        return entry.held and len(entry.contexts) < CONTEXTS and context not in entry.contexts

    def add(self, text: str, context: str, kv: KV, node: str) -> None:
        """Keep a text as it was read in one more context: the mean of all of them."""
        key = f"{text}.{READ}"
        entry = self._entries.get(key)
        known = self.get(key) if entry else None
        if entry is None or known is None:
            self.put(key, kv, node, (context,))
            return
        count = len(entry.contexts)
        entry.contexts += (context,)
        self._keep(entry, known.with_one_more(kv, count))

    def claim(
        self, key: str, owner: object, nbytes: int, node: str = "", context: str = ""
    ) -> Entry | None:
        """A pending entry that `owner` computes; None where there is one already."""
        if key in self._entries:
            return None
        entry = Entry(key, nbytes, pending=owner, node=node, contexts=(context,))
        self._admit(entry)
        return entry

    def abandon(self, entry: Entry) -> None:
        """A pending entry, or a view, will not be there."""
        if self._entries.get(entry.key) is entry and not entry.held:
            self._forget(entry, NOT_MADE)

    def publish(self, key: str, source: KVSource, slots: Sequence[int], refs: int) -> Entry:
        """A message's KV, a view of `source`, for so many readers."""
        entry = self._entries.get(key)
        if entry is None:
            entry = Entry(key, 0, view=(source, slots), message=True)
            self._admit(entry)
        entry.refs += refs
        return entry

    def put(self, key: str, kv: KV, node: str = "", contexts: tuple[str, ...] = ()) -> bool:
        """Keep `kv` under `key`; False when there is no room for it."""
        old = self._entries.get(key)
        if old is not None and old.held:
            return True
        entry = old or Entry(key, kv.nbytes, node=node, contexts=contexts)
        self._admit(entry)
        entry.pending = entry.view = None
        return self._keep(entry, kv)

    def get(self, key: str) -> KV | None:
        """The KV under `key`, or None when it is not (or no longer) here; see `why`."""
        entry = self._entries.get(key)
        if entry is None or entry.pending is not None:
            return None
        if entry.view is not None:
            return self._copy(entry)
        try:
            return self.tiers.load(entry)
        except ValueError as error:
            self._forget(entry, str(error))
            return None

    def _copy(self, entry: Entry) -> KV | None:
        assert entry.view is not None
        source, slots = entry.view
        kv, entry.view = source.position_free(slots), None
        return kv if self._keep(entry, kv) else None

    def _keep(self, entry: Entry, kv: KV) -> bool:
        kept = self.tiers.keep(entry, kv)
        if not kept:
            self._forget(entry, NO_ROOM)
        return kept

    def detach(self, entry: Entry) -> None:
        """The sequence that `entry` is a view of ends: copy what somebody may need."""
        if self._entries.get(entry.key) is not entry or entry.held:
            return
        if entry.pending is not None or (entry.message and not entry.refs):
            self._forget(entry, GONE)
        else:
            self._copy(entry)

    def retain(self, key: str) -> None:
        """One more reader is to come."""
        if entry := self._entries.get(key):
            entry.refs += 1

    def release(self, key: str) -> None:
        """A reader has done with it."""
        entry = self._entries.get(key)
        if entry is None or not entry.refs:
            return
        entry.refs -= 1
        if not entry.refs and entry.message:
            self._forget(entry, GONE)

    def why(self, key: str) -> str:
        """Why `get` found nothing under `key`."""
        return self._lost.get(key, GONE)

    def clear(self) -> None:
        """Forget everything, but for what is on disk: later processes find that."""
        for entry in list(self._entries.values()):
            self.tiers.forget(entry, saved=False)
            self._forget(entry, GONE)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def _admit(self, entry: Entry) -> None:
        self._lost.pop(entry.key, None)
        self._entries[entry.key] = entry

    def _forget(self, stored: Stored, reason: str) -> None:
        entry = self._entries.pop(stored.key)
        self.tiers.forget(entry)
        entry.pending = entry.view = entry.kv = None
        self._lost[entry.key] = reason
        while len(self._lost) > REMEMBERED:
            self._lost.popitem(last=False)

    def check_integrity(self) -> None:
        """Raise `AssertionError` when an invariant is broken. For tests."""
        self.tiers.check_integrity()
        for key, entry in self._entries.items():
            assert key == entry.key
            assert entry.refs or not (entry.message and entry.held)
