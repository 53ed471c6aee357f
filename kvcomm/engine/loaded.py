"""What every engine over a loaded transformers model has: its identity."""

from __future__ import annotations

from typing import Any

from kvcomm.engine.base import Capabilities
from kvcomm.engine.bounded import Bounded
from kvcomm.engine.models import weights_of
from kvcomm.engine.tokens import TokenizerCodec


class LoadedEngine(Bounded):
    """The part of `kvcomm.engine.base.Engine` that does not depend on how the model is run."""

    def __init__(
        self,
        model: Any,
        codec: TokenizerCodec,
        capabilities: Capabilities,
        *,
        name: str,
        fingerprint: str,
        max_context: int,
        stop: frozenset[int],
    ) -> None:
        self.model = name
        self.network = model
        self.config = model.config
        self.fingerprint = fingerprint
        self.weights = weights_of(model)
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.max_context = max_context
        self.codec = codec
        codec.most = max_context
        self.capabilities = capabilities
        self.stop = stop
