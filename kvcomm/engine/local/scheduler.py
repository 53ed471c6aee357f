"""What is computed in the next step: a pure function of what is queued. No model, no clock.

The rules, in order:

1. Every sequence that answers gets one token, those of the background apart (7).
2. Beside them prompts are prefilled: 2,048 tokens a step, 256 beside answers or in the background,
   32 in the background while calls are open: a call that becomes ready waits for the step.
3. The most urgent prompts come first, and of equal ones the first to come.
4. Prompts share a step until it has 256 tokens: a full step gets no faster by another one.
5. Less urgent prompts wait until a step has no more urgent ones.
6. Work ahead waits while an answer has ended and its message is not out: its reader comes first.
7. Background work runs when nothing else is queued and no message is on its way. On an engine that
   is never idle it gets every fourth step in which no prompt is prefilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from kvcomm.engine.base import AHEAD, BACKGROUND, READY

STEP_TOKENS = 2048
# Beside answers, whose next tokens wait for the step, and in the background.
SMALL_STEP_TOKENS = 256
# In the background, while calls are open.
TINY_STEP_TOKENS = 32
# A step with as many tokens is efficient.
FULL_STEP = 256
# Of so many steps of an engine that is never idle, one is the background's.
SHARE = 4


class Queued(Protocol):
    """A prompt to prefill: its priority, its place in the queue, and the tokens left."""

    @property
    def priority(self) -> int: ...

    @property
    def order(self) -> int: ...

    @property
    def left(self) -> int: ...


class Answers(Protocol):
    """A sequence that answers."""

    @property
    def priority(self) -> int: ...


P = TypeVar("P", bound=Queued)
A = TypeVar("A", bound=Answers)


@dataclass(frozen=True)
class Batch(Generic[P, A]):
    """One step: the next token of sequences, and the next tokens of prompts."""

    answers: Sequence[A]
    prompts: Sequence[tuple[P, int]]

    @property
    def background(self) -> bool:
        """Whether anything in it is background work."""
        found = [*(a.priority for a in self.answers), *(p.priority for p, _ in self.prompts)]
        return any(priority >= BACKGROUND for priority in found)


def schedule(
    prompts: Sequence[P],
    answers: Sequence[A],
    *,
    held: bool = False,
    calls: bool = False,
    waited: int = 0,
    limit: int = STEP_TOKENS,
) -> Batch[P, A]:
    """The next step. `held`: a message is on its way (rule 6). `calls`: sequences are open that are
    not the background's. `waited`: steps since the last one with background work. No step has more
    than `limit` tokens of prompts.
    """
    urgent = [prompt for prompt in prompts if prompt.priority < BACKGROUND]
    due = [answer for answer in answers if answer.priority < BACKGROUND]
    ready = any(prompt.priority == READY for prompt in urgent)
    if held:
        urgent = [prompt for prompt in urgent if prompt.priority < AHEAD]
    idle = not (urgent or due or held)
    if idle or (waited + 1 >= SHARE and not ready and not held):
        others = [prompt for prompt in prompts if prompt.priority >= BACKGROUND]
        late = [answer for answer in answers if answer.priority >= BACKGROUND]
        if late or others:
            room = TINY_STEP_TOKENS if calls else SMALL_STEP_TOKENS
            return Batch([*due, *late], _fill(others, min(limit, room), room))
    room = SMALL_STEP_TOKENS if due else STEP_TOKENS
    return Batch(due, _fill(urgent, min(limit, room), FULL_STEP))


def _fill(prompts: Sequence[P], room: int, full: int) -> list[tuple[P, int]]:
    """Tokens of the most urgent prompts, until the step is full."""
    chosen: list[tuple[P, int]] = []
    taken = 0
    for prompt in sorted(prompts, key=lambda prompt: (prompt.priority, prompt.order)):
        if taken >= min(room, full) or (chosen and prompt.priority > chosen[0][0].priority):
            break
        tokens = min(prompt.left, room - taken)
        chosen.append((prompt, tokens))
        taken += tokens
    return chosen
