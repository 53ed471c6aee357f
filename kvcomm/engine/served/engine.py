"""The engine over HTTP: a model that an OpenAI-compatible server with prefix caching runs."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvcomm.background import Background
from kvcomm.engine.base import CallSpec, Capabilities
from kvcomm.engine.bounded import Bounded
from kvcomm.engine.collected import WithoutKV
from kvcomm.engine.served.client import Client
from kvcomm.engine.served.protocol import Abilities, Gate
from kvcomm.engine.served.sequence import ServedSequence
from kvcomm.engine.tokens import TokenizerCodec

# Requests under way at once; a server queues what it cannot compute at once.
PARALLEL = 32


@dataclass(eq=False, repr=False)
class ServedEngine(WithoutKV, Bounded):
    """Sends prompts as token ids and streams answers; made by `load_served`.

    All requests live on the event loop of `background`, so that sessions on any loop can share
    the engine. Its calls that may read prefixes share one salt a namespace; all others have a salt
    of their own, so neither profits from what the other has computed.
    """

    client: Client
    background: Background
    codec: TokenizerCodec
    abilities: Abilities
    model: str
    fingerprint: str
    max_context: int
    stop: frozenset[int]
    dtype: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        self.device = self.client.base_url
        reason = "its KV stays on the server, which reuses equal prefixes"
        lacks = f"; {self.abilities.lacks}" if self.abilities.lacks else ""
        self.capabilities = Capabilities(reuse=False, exact=True, reason=reason + lacks)
        self.gate = Gate(PARALLEL)
        self._secret = secrets.token_hex(8)

    def open(self, call: CallSpec) -> ServedSequence:
        self.check(call)
        return ServedSequence(self, call)

    def body(self, ids: Sequence[int], salt: str, **more: Any) -> dict[str, Any]:
        """A request for a completion of a prompt."""
        return self.abilities.body(self.model, list(ids), salt, **more)

    def salt(self, call: CallSpec) -> str:
        """What keeps the call's prefixes apart on the server."""
        if not call.reuse.reads_prefix:
            return secrets.token_hex(16)
        return hashlib.sha256(f"{self._secret} {call.namespace}".encode()).hexdigest()[:32]

    async def drain(self) -> None:
        while self.gate.ahead:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        super().close()
        shut(self.background, self.client)


def shut(background: Background, client: Client) -> None:
    """Cancel what runs, then close the connections and the thread. Safe to call twice."""
    if background.closed:
        return
    background.cancel()
    background.run(client.close())
    background.close()
