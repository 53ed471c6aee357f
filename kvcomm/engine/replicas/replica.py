"""A replica as the driver sees it: its actor, whether it is up, and how much it has to do."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from kvcomm.engine.replicas.actor import About, Reply
from kvcomm.errors import KvcommError, ReplicaLost

# How often a replica that is down is looked for, and how long a call waits for any that is up.
LOOK_S = 0.2
PATIENCE_S = 120.0


class Replica:
    """One actor. `rows` are open on it, `runs` were placed on it; `full`: it had no room to spare.

    `lives` counts its starts: KV of an earlier life is gone.
    """

    def __init__(self, index: int, actor: Any) -> None:
        self.index = index
        self.actor = actor
        self.up = True
        self.full = False
        self.lives = 1
        self.rows = 0
        self.runs = 0
        self.about: About | None = None
        self._back: Future[Any] | None = None

    @property
    def life(self) -> tuple[int, int]:
        """This start of this replica: KV of an earlier one is gone."""
        return self.index, self.lives

    async def call(self, operation: str, *args: Any) -> Any:
        """The value and state that an operation of the actor replies.

        Raises what it raised on purpose, and `ReplicaLost` when it is gone, or has lost the row.
        """
        ref = getattr(self.actor, operation).remote(*args)
        try:
            # Shielded: Ray sets the results of futures that nobody waits for, too.
            reply = await asyncio.shield(asyncio.wrap_future(ref.future()))
        except RayTaskError:
            raise
        except RayError:
            self.lost()
            raise self._gone() from None
        if not isinstance(reply, Reply):
            return reply
        if reply.raised:
            kind, text = reply.raised
            raise _restored(kind, text)
        if reply.state is None:
            raise self._gone()
        return reply.value, reply.state

    def send(self, operation: str, *args: Any) -> None:
        """An operation whose result nobody needs."""
        getattr(self.actor, operation).remote(*args)

    def lost(self) -> None:
        """It does not answer: leave it out until it does again."""
        if self.up:
            self.up, self.full = False, False
            self.rows = 0
            self._back = self.actor.about.remote().future()

    def look(self) -> bool:
        """Whether it is up, or has come back."""
        if not self.up and self._back is not None and self._back.done():
            try:
                self._back.result()
            except RayError:
                # Unavailable for now, or for good: then asking costs nothing.
                self._back = self.actor.about.remote().future()
            else:
                self.up, self._back = True, None
                self.lives += 1
        return self.up

    def _gone(self) -> ReplicaLost:
        return ReplicaLost(f"replica {self.index} was lost")

    def stop(self) -> None:
        """End the actor."""
        ray.kill(self.actor)


def _restored(kind: type[KvcommError], text: str) -> KvcommError:
    """An error with its text: constructors may want something else than that."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error
