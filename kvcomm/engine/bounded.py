"""What engines share: an identity, a context that calls must fit, and an end."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

from kvcomm.engine.base import CallSpec, Capabilities
from kvcomm.engine.models import weights_of
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import ContextOverflow


class Bounded:
    """Checks calls against the context of a model; to be used in a `with` statement."""

    model: str
    device: str
    dtype: str
    max_context: int

    def check(self, call: CallSpec) -> None:
        """Raise `ContextOverflow` when the call may not fit the model's context."""
        excess = call.capacity - self.max_context
        if excess > 0:
            raise ContextOverflow(
                f"node `{call.node}` may need {call.capacity} tokens, {excess} more than the "
                f"context of {self.max_context} of {self.model}: shorten its inputs or lower "
                "max_tokens"
            )

    @cached_property
    def before_close(self) -> set[Callable[[], object]]:
        """What is called when the engine is closed, while it still works."""
        return set()

    def close(self) -> None:
        """Stop what the engine runs."""
        for call in tuple(self.before_close):
            call()

    def __repr__(self) -> str:
        where = ", ".join(filter(None, (self.device, self.dtype)))
        return f"<{type(self).__name__} {self.model} on {where}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LoadedEngine(Bounded):
    """A loaded transformers model, however it is run."""

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
