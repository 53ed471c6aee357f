"""What every engine over a loaded transformers model has: its identity and its context."""

from __future__ import annotations

from typing import Any, Self

from kvcomm.engine.base import Call, Capabilities
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import ContextOverflow


class LoadedEngine:
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
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.max_context = max_context
        self.codec = codec
        codec.most = max_context
        self.capabilities = capabilities
        self.stop = stop
        self.steps = 0

    def check(self, call: Call) -> None:
        """Raise `ContextOverflow` when the call may not fit the model's context."""
        excess = call.capacity - self.max_context
        if excess > 0:
            raise ContextOverflow(
                f"node `{call.node}` may need {call.capacity} tokens, {excess} more than the "
                f"context of {self.max_context} of {self.model}: shorten its inputs or lower "
                "max_tokens"
            )

    def close(self) -> None:
        """Stop what the engine runs."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
