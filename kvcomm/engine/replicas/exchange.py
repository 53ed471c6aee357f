"""How a replica gives KV away, and takes in what another one gives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from kvcomm.engine.clock import wait_for
from kvcomm.engine.memory import out_of_memory
from kvcomm.engine.replicas.parcel import Parcel, packed, unpacked
from kvcomm.kv import KV
from kvcomm.kv.store import GONE

LOST = "lost"


class Exchange:
    """The part of a replica's process that is about KV of other replicas.

    A parcel is not sent through the driver: it hands the receiver Ray's reference, in a list, so
    that Ray does not wait for it before the call. Nothing else here knows Ray.
    """

    engine: Any

    async def export(self, key: str) -> Parcel | None:
        """KV of the store, for another replica; None where it has left the store."""
        kv = await self.engine.call(lambda: self.engine.store.get(key, check=True))
        return None if kv is None else await asyncio.to_thread(packed, kv)

    async def adopt(
        self, key: str, ref: list[Any], uses: Sequence[int], limit: float
    ) -> tuple[int, str]:
        """Keep KV that another replica exports, pinned for `uses`: its bytes, or 0 and why not.

        More than `limit` seconds are not waited for.
        """
        try:
            parcel = await _arriving(ref, limit)
        except TimeoutError:
            return 0, f"it was not here after {limit:.1f} s"
        except Exception:  # whatever Ray says of a replica or a machine that died
            return 0, LOST
        if parcel is None:
            return 0, GONE
        try:
            kv = await asyncio.to_thread(unpacked, parcel, self.engine.network.device)
            kept = await self.engine.call(lambda: self.engine.store.put(key, kv, uses))
        except ValueError as error:
            return 0, str(error)
        except Exception as error:
            if not out_of_memory(error):
                raise
            kept = False
        return (kv.nbytes, "") if kept else (0, "there was no room for its KV")

    async def blank(self, nbytes: int) -> Parcel:
        """A parcel of so many bytes, to measure with."""
        kv = KV(*torch.zeros(2, 1, 1, 1, nbytes // 2, dtype=torch.uint8))
        return await asyncio.to_thread(packed, kv)

    async def weigh(self, ref: list[Any], limit: float) -> bool:
        """Take a parcel in and throw it away; whether it came."""
        try:
            parcel = await _arriving(ref, limit)
        except Exception:
            return False
        device = self.engine.network.device
        await asyncio.to_thread(unpacked, parcel, device)
        await asyncio.to_thread(wait_for, device)
        return True


async def _arriving(ref: list[Any], limit: float) -> Any:
    """What Ray's reference stands for. Raises `TimeoutError`, and Ray's own errors."""
    # Shielded: Ray sets the results of futures that nobody waits for, too.
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(ref[0].future())), limit)
