"""What one replica learned, told to all the others.

An exchange takes from every replica what it observed since the last one and sends that to each of
the others, once: replicas exchange what is new, never sums of what they know, so nothing is counted
twice. A replica that was started anew is first given all that another one knows. What does not
arrive is not sent again: who did not take it is gone, and will be given the whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from kvcomm.background import Background
from kvcomm.engine.base import Learned
from kvcomm.engine.replicas.lessons import Lessons
from kvcomm.engine.replicas.replica import Replica
from kvcomm.errors import ReplicaLost, StateError

# At least so long between two exchanges, and so many times as long as the last one took.
SHARE_S = 30.0
RARELY = 20


class Sharing:
    """Exchanges between replicas, one at a time, on a thread of their own.

    Runs go on meanwhile. Replicas that nothing was observed on and nothing was read for are left
    alone.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._read_before: dict[tuple[Path, str], Learned] = {}  # folders, by namespace
        self._lives: list[int] = []  # of the replicas, at the last exchange
        self._wanted = self._busy = False
        self._next = time.monotonic() + SHARE_S
        self._background: Background | None = None
        self._lock = asyncio.Lock()

    def observed(self) -> None:
        """A replica has learned something: exchange, unless that was done lately."""
        self._wanted = True
        self.look()

    def look(self) -> None:
        """Exchange if it is time to, or a replica was started anew; returns at once."""
        anew = self._lives and self._lives != [replica.lives for replica in self._replicas]
        if self._wanted and not self._busy and (anew or time.monotonic() >= self._next):
            self._busy = True
            self._thread.start(self._exchange())

    async def exchange(self) -> None:
        """Have every replica know what all have learned until now."""
        await self._run(self._exchange())

    async def read(self, folder: Path, namespace: str) -> Learned:
        """Every replica knows what the folder says, and what all have observed."""
        return await self._run(self._read(folder, namespace))  # type: ignore[no-any-return]

    async def save(self, folder: Path, namespace: str) -> int:
        """One replica writes what all have learned; returns the bytes.

        Raises `StateError` where none is up.
        """
        return await self._run(self._save(folder, namespace))  # type: ignore[no-any-return]

    def close(self) -> None:
        """End an exchange that is under way."""
        if self._background is not None:
            self._background.close()

    @property
    def _thread(self) -> Background:
        if self._background is None:
            self._background = Background("kvcomm-sharing")
        return self._background

    async def _run(self, operation: Any) -> Any:
        self._wanted = True
        # Shielded: what was taken has to arrive, whether or not somebody waits for it.
        return await asyncio.shield(asyncio.wrap_future(self._thread.start(operation)))

    async def _exchange(self) -> list[Replica]:
        """Returns the replicas that know everything now."""
        async with self._lock:
            self._busy = True
            began = time.monotonic()
            try:
                return await self._level()
            finally:
                now = time.monotonic()
                self._next = now + max(SHARE_S, RARELY * (now - began))
                self._busy = False

    async def _read(self, folder: Path, namespace: str) -> Learned:
        async with self._lock:
            # Reading again would take back what was learned since and not saved yet.
            if (folder, namespace) in self._read_before:
                return self._read_before[folder, namespace]
            await self._level()  # what they replace is then the same for all
            for learned in (await self._read_by(self._up, folder, namespace)).values():
                self._read_before[folder, namespace] = learned
                return learned
            return Learned(None, 0, 0, "no replica is up")

    async def _read_by(
        self, replicas: list[Replica], folder: Path, namespace: str
    ) -> dict[Replica, Learned]:
        """Have replicas read a folder, and tell each other what they have observed before."""
        read = await self._ask_all("read", replicas, folder, namespace)
        await self._spread({r: observed for r, (_, observed) in read.items()}, list(read))
        return {replica: learned for replica, (learned, _) in read.items()}

    async def _save(self, folder: Path, namespace: str) -> int:
        for replica in await self._exchange():
            try:
                written, _ = await replica.call("ask", "save_state", folder, namespace)
            except ReplicaLost:
                continue
            return int(written)
        raise StateError("what was learned is not saved: no replica is up")

    @property
    def _up(self) -> list[Replica]:
        return [replica for replica in self._replicas if replica.up]

    async def _level(self) -> list[Replica]:
        """Have all replicas know the same; returns those that do."""
        self._lives = [replica.lives for replica in self._replicas]
        taken = await self._ask_all("take", self._up)
        knowing = [replica for replica, lessons in taken.items() if lessons is not None]
        await self._spread({replica: taken[replica] for replica in knowing}, knowing)
        anew = [replica for replica, lessons in taken.items() if lessons is None]
        return [*knowing, *await self._teach(anew, knowing)] if anew else knowing

    async def _teach(self, anew: list[Replica], knowing: list[Replica]) -> list[Replica]:
        """Give replicas all that one of `knowing` knows, or the state folder where there is none.

        What they have observed meanwhile goes to everyone. Returns those who know everything now.
        """
        known: Lessons = {}
        for donor in knowing:
            copied = (await self._ask_all("copy", [donor])).get(donor)
            if copied is not None:
                known, late = copied
                await self._spread({donor: late}, knowing)
                break
        else:
            if self._read_before:
                for folder, namespace in self._read_before:
                    anew = list(await self._read_by(anew, folder, namespace))
                return anew
        adopted = await self._ask_all("adopt", anew, ray.put(known))
        await self._spread(adopted, [*knowing, *adopted])
        return list(adopted)

    async def _spread(
        self, lessons: Mapping[Replica, Lessons], to: Sequence[Replica] | None = None
    ) -> None:
        """Send what each of some replicas observed to the others, all of it at once to each."""
        parcels = {replica: ray.put(lesson) for replica, lesson in lessons.items() if lesson}

        async def send(replica: Replica) -> None:
            others = [parcel for sender, parcel in parcels.items() if sender is not replica]
            if others:
                await self._ask_all("merge", [replica], *others)

        await asyncio.gather(*map(send, self._up if to is None else to))

    async def _ask_all(
        self, operation: str, replicas: Sequence[Replica], *args: Any
    ) -> dict[Replica, Any]:
        """What replicas answer, without those that are lost."""

        async def ask(replica: Replica) -> tuple[Replica, Any] | None:
            try:
                value, _ = await replica.call("learn", operation, *args)
            except (ReplicaLost, RayTaskError):  # one that failed wants to be taught anew
                return None
            return replica, value

        found = await asyncio.gather(*map(ask, replicas))
        return dict(answer for answer in found if answer is not None)
