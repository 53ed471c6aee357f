"""What engines of replicas share, wherever these are; see `kvcomm.engine.base.Replicated`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from kvcomm.engine.bounded import Bounded

# What an engine says of itself, and its driver repeats.
ABOUT = ("model", "device", "dtype", "fingerprint", "weights", "max_context", "capabilities")
# So many sessions are remembered, those that ran last.
SESSIONS = 256
# Graphs and conversations whose replica is remembered.
REMEMBERED = 4096


class Choosable(Protocol):
    """A replica: `tasks` are under way on it, `placed` were begun on it so far."""

    tasks: int
    placed: int


R = TypeVar("R", bound=Choosable)


class SessionHost:
    """An engine, and sessions on it by the names that the driver gave them.

    `tell` hands something on to whoever hears a name in the driver.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._sessions: OrderedDict[str, Any] = OrderedDict()

    def tell(self, name: str, item: Any) -> None:
        raise NotImplementedError

    def session(self, name: str, make: Callable[[Any], Any]) -> Any:
        """The session of this name, made on the engine where it is new."""
        found = self._sessions[name] = self._sessions.pop(name, None) or make(self.engine)
        if len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return found

    async def drain(self) -> None:
        """Wait until all audits are made."""
        for session in list(self._sessions.values()):
            await session.adrain()

    def tell_audits(self) -> None:
        """Tell what was audited here and not told yet."""
        for name, session in self._sessions.items():
            if session.auto is not None and (audits := session.auto.take()):
                self.tell(name, audits)


class ReplicatedEngine(Bounded):
    """Chooses replicas, and hands on what they tell."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, Any] = OrderedDict()
        self._heard: dict[str, Callable[[Any], None]] = {}

    def _chosen(self, up: Sequence[R], key: str, stay: bool) -> R:
        """The one with the fewest tasks; of several, the one that had the `key` last."""
        last = self._last.pop(key, None)
        if stay and last in up:
            up = [last]
        chosen = self._last[key] = min(up, key=lambda r: (r.tasks, r is not last, r.placed))
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        return chosen

    def hear(self, name: str, heard: Callable[[Any], None]) -> None:
        self._heard[name] = heard

    def unhear(self, name: str) -> None:
        if (heard := self._heard.pop(name, None)) is not None:
            heard(None)

    def _told(self, name: str, item: Any) -> None:
        """A replica tells something of a name; None is the last of it."""
        if item is None:
            self.unhear(name)
        elif (heard := self._heard.get(name)) is not None:
            heard(item)

    def _unhear_all(self) -> None:
        for name in list(self._heard):
            self.unhear(name)
