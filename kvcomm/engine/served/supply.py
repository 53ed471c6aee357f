"""What a client knows of the KV that its server keeps: names of texts and messages, and models."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from kvcomm.engine.base import CallSpec
from kvcomm.engine.segments import ALONE, READ, template_key, text_key
from kvcomm.engine.usage import ranges
from kvcomm.kv import content_key
from kvcomm.message import Handle
from kvcomm.prompt import Segment
from kvcomm.reuse.offsets import label_of
from kvcomm.reuse.plan import BaseKind, Predictability
from kvcomm.reuse.state import learned_by
from kvcomm.vllm.protocol import Piece, Publish, Reply, Request

# The most texts whose names are remembered.
REMEMBERED = 100_000
NOBODY = "no earlier prompt has its KV"
GONE = "the server has let go of its KV"

Model = tuple[str, str, str]


@dataclass(eq=False)
class Named:
    """A text or message on the server: its token `i` is at `places[i]` of what is called `name`.

    Tokens without KV are at None. It may be `pending`: the server is about to compute it.
    """

    name: str
    places: Sequence[int | None]
    kind: BaseKind
    node: str = ""
    exact: bool = True
    readers: int = 0
    pending: Future[None] | None = None

    @property
    def covered(self) -> tuple[int, ...]:
        """The tokens that have KV."""
        return tuple(i for i, place in enumerate(self.places) if place is not None)


@dataclass
class Supply:
    """The names of one server, by the address of what they hold; the least recently used go first.

    `models` is what the server last said of its offset models. What is to be let go of is told with
    the next request. Sessions on several threads share it.
    """

    fingerprint: str
    models: dict[Model, Predictability] = field(default_factory=dict)
    _drops: list[str] = field(default_factory=list)  # names
    _ends: list[str] = field(default_factory=list)  # rows
    _named: OrderedDict[str, Named] = field(default_factory=OrderedDict)
    _keys: dict[str, str] = field(default_factory=dict)  # by name
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, key: str, named: Named) -> None:
        """Remember where something is; what it replaces is let go of."""
        with self._lock:
            self._forget(key)
            self._named[key], self._keys[named.name] = named, key
            while len(self._named) > REMEMBERED:
                self._forget(next(iter(self._named)))

    def get(self, key: str) -> Named | None:
        """What is known under an address."""
        with self._lock:
            if key in self._named:
                self._named.move_to_end(key)
            return self._named.get(key)

    def lost(self, names: Iterable[str]) -> None:
        """The server has these no more."""
        with self._lock:
            for name in names:
                if key := self._keys.pop(name, None):
                    self._named.pop(key, None)

    def _forget(self, key: str) -> None:
        if (named := self._named.pop(key, None)) is not None:
            self._keys.pop(named.name, None)
            self._drops.append(named.name)

    def retain(self, key: str) -> bool:
        """One more reader of a message; False where it is gone."""
        with self._lock:
            named = self._named.get(key)
            if named is not None:
                named.readers += 1
            return named is not None

    def release(self, key: str) -> None:
        """One reader of a message has done with it."""
        with self._lock:
            named = self._named.get(key)
            if named is not None:
                named.readers -= 1
                if named.readers <= 0:
                    self._forget(key)

    def drop(self, name: str) -> None:
        """A name is wanted no more."""
        with self._lock:
            self._drops.append(name)

    def end(self, row: str) -> None:
        """A row is wanted no more."""
        with self._lock:
            self._ends.append(row)

    def params(self, request: Request) -> dict[str, Any]:
        """The field of a request that asks for this; it takes along what is to be let go of."""
        with self._lock:
            drops, self._drops = self._drops, []
            ends, self._ends = self._ends, []
        request = replace(request, release=tuple(drops), ends=tuple(ends))
        return {"kv_transfer_params": request.to_json()}

    def heard(self, reply: Reply | None) -> None:
        """Take in what the server says of names and models."""
        if reply is None:
            return
        self.lost(reply.missing)
        for joined, told in (reply.models or {}).items():
            family, template, label = joined.split(" ", 2)
            self.models[family, template, label] = predictability(told)

    # --- addresses ---

    def text(self, namespace: str, ids: Sequence[int], *, alone: bool) -> str:
        """The address of an input."""
        return f"{text_key(self.fingerprint, namespace, ids)}.{ALONE if alone else READ}"

    def literal(self, call: CallSpec, number: str) -> str:
        """The address of a template's literal, computed without what fills the holes."""
        stem = template_key(self.fingerprint, call.namespace, call.template)
        return f"{stem}-{number}"

    def head(self, namespace: str, ids: Sequence[int]) -> str:
        """The address of the beginning of prompts."""
        return content_key(self.fingerprint, namespace, "head", tuple(ids))

    def of(self, call: CallSpec, segment: Segment, bases: str) -> tuple[Named | None, str]:
        """Base KV of a segment where it is known; else why not."""
        if segment.kind == "literal":
            found = self.get(self.literal(call, segment.name.rpartition(" ")[2]))
            return found, NOBODY
        if segment.name in call.messages:
            if segment.handle is None:
                return None, "no base KV"
            return self.get(segment.handle.key), GONE
        return self.input(call.namespace, segment.ids, borrowed=bases == "borrowed"), NOBODY

    def input(self, namespace: str, ids: Sequence[int], *, borrowed: bool) -> Named | None:
        """Base KV of an input: as a prompt has read it, where it may be `borrowed`, or alone."""
        read = self.get(self.text(namespace, ids, alone=False)) if borrowed else None
        return read or self.get(self.text(namespace, ids, alone=True))

    def model(self, call: CallSpec, segment: Segment, family: str, bases: str) -> Model:
        """The offset model of a placeholder."""
        number = call.template.number(segment.index)
        read = bases == "borrowed" and segment.name not in call.messages
        label = label_of(family, segment.name, number, read=read)
        return family, learned_by(call.template, call.namespace), label

    def says(self, model: Model) -> Predictability:
        """What a model can predict, whatever the text."""
        return self.models.get(model, Predictability(False, "too little learned: 0 samples"))


def predictability(told: tuple[bool, str, int, float]) -> Predictability:
    """What a server says of a model."""
    shareable, reason, samples, error = told
    return Predictability(bool(shareable), str(reason), int(samples), float(error))


def new_name() -> str:
    """A secret that nobody guesses."""
    return secrets.token_hex(16)


def published(
    supply: Supply,
    call: CallSpec,
    segments: Sequence[tuple[int, Segment]],
    pending: Future[None],
) -> list[Publish]:
    """What a computed prompt leaves for others: its inputs, and the beginning of its template.

    `segments` are those of the prompt, and where they start. Names are remembered at once, as
    `pending`.
    """
    found = []
    for start, segment in segments:
        stop = start + len(segment)
        if start == 0 and segment.kind == "literal":
            if not call.reuse.reads_prefix:
                continue
            key = supply.head(call.namespace, segment.ids)
        elif segment.kind == "placeholder" and segment.name not in call.messages and len(segment):
            key = supply.text(call.namespace, segment.ids, alone=False)
            if not call.shares:
                continue
        else:
            continue
        if supply.get(key) is None:
            name = new_name()
            supply.add(
                key, Named(name, range(len(segment)), "borrowed", call.node, pending=pending)
            )
            found.append(Publish(name, start, stop))
    return found


def pieces_of(
    named: Named, begin: int, positions: Sequence[int], model: Model | None, scale: float
) -> list[Piece]:
    """Pieces that fill the ascending `positions` of a segment that begins at `begin`."""
    found: list[Piece] = []
    for position in positions:
        place = named.places[position]
        assert place is not None
        last = found[-1] if found else None
        at = begin + position
        if last is not None and last.stop == at and last.origin + (at - last.start) == place:
            found[-1] = Piece(last.start, at + 1, named.name, last.origin, model, scale)
        else:
            found.append(Piece(at, at + 1, named.name, place, model, scale))
    return found


def handle_of(key: str, named: Named) -> Handle:
    """The handle on a message's KV."""
    return Handle(key, len(named.places), tuple(ranges(named.covered)), named.exact)
