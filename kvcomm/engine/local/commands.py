"""What other threads ask of the engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from kvcomm.engine.base import READY, Answer
from kvcomm.engine.local.state import Answering, Moment, SequenceState
from kvcomm.engine.segments import Entry
from kvcomm.prompt import Segment
from kvcomm.reuse.policy import Policy


@dataclass(eq=False)
class Extend:
    """The command to append segments. `future` gets what became of them.

    The prompt `ends` with them, or is answered behind them as `last` says. With `planning` nothing
    is appended: the future gets the `Plan`. `at` is an earlier moment, `measured`
    says where dense KV shows which tokens deviate: in so many first layers of a sequence.

    It `awaits` pending entries of the segment cache; `absent` says which bases could not be made.
    """

    seq: SequenceState
    segments: Sequence[Segment]
    policy: Policy
    last: Answer | None = None
    answering: Answering | None = None
    settle: bool = True
    ends: bool = False
    at: Moment | None = None
    measured: tuple[SequenceState, int] | None = None
    planning: bool = False
    future: Future[Any] = field(default_factory=Future)
    awaits: list[Entry] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    base_tokens: int = 0


@dataclass(eq=False)
class Compare:
    """The command to compare a sequence with `dense`, which answered greedily and recorded."""

    seq: SequenceState
    dense: SequenceState
    future: Future[Any] = field(default_factory=Future)


@dataclass(eq=False)
class Run:
    """The command to call something on the engine's thread, when `priority` has its turn."""

    task: Callable[[], Any]
    priority: int = READY
    future: Future[Any] = field(default_factory=Future)


Command = Extend | Compare | Run


def priority_of(command: Command) -> int:
    """When a command has its turn."""
    return command.priority if isinstance(command, Run) else command.seq.priority
