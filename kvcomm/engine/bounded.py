"""What every engine has: a name, a context that calls must fit, and an end."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Self

from kvcomm.engine.base import CallSpec
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
