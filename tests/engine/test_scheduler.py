"""The next step: each rule of the scheduler as lines of a table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.engine.base import AHEAD, BACKGROUND, READY
from kvcomm.engine.local.scheduler import SHARE, schedule

OPEN = {"calls": True}
LAST = {"waited": SHARE - 1}
HELD = {"held": True}


@dataclass
class Queued:
    """A prompt, or a sequence that answers."""

    name: str
    left: int
    priority: int
    order: int = 0

    @classmethod
    def of(cls, text: str, order: int) -> Queued:
        """As `a200 ready`: its name and tokens, and its priority."""
        what, priority = text.split()
        levels = {"ready": READY, "ahead": AHEAD, "background": BACKGROUND}
        return cls(what[0], int(what[1:] or 0), levels[priority], order)


# By rule: what is queued, first those that answer, and how much of it is in the next step.
RULES = [
    ("1 every answer has a token", "x ready, y ahead", {}, "x y"),
    ("1 but for the background's", "x ready, z background", {}, "x"),
    ("2 so many tokens of prompts", "a5000 ready", {}, "a2048"),
    ("2 and fewer beside answers", "x ready, a5000 ready", {}, "x a256"),
    ("2 and in the background", "a5000 background", {}, "a256"),
    ("2 much fewer while calls are open", "a5000 background", OPEN, "a32"),
    ("2 and where memory is short", "a5000 ready", {"limit": 100}, "a100"),
    ("3 the most urgent comes first", "a300 ahead, b300 ready", {}, "b300"),
    ("3 then the first to come", "a300 ready, b300 ready", {}, "a300"),
    ("4 prompts share a step", "a99 ready, b99 ready, c700 ready, d1 ready", {}, "a99 b99 c700"),
    ("4 as far as there is room", "x ready, a200 ready, b100 ready", {}, "x a200 b56"),
    ("5 not with less urgent ones", "a10 ready, b10 ahead", {}, "a10"),
    ("5 these go beside answers", "x ready, b10 ahead", {}, "x b10"),
    ("6 ahead waits for a message", "x ready, b10 ahead", HELD, "x"),
    ("6 who is ready does not", "a10 ready, b10 ahead", HELD, "a10"),
    ("7 the background has the rest", "y background, z10 background", {}, "y z10"),
    ("7 not before a message", "z10 background", HELD | LAST, ""),
    ("7 nor beside others", "x ready, b10 ahead, z10 background", {"waited": SHARE - 2}, "x b10"),
    ("7 but in every fourth step", "x ready, b10 ahead, z10 background", LAST, "x z10"),
    ("7 without one who is ready", "x ready, a10 ready, z10 background", LAST, "x a10"),
]


@pytest.mark.parametrize(("rule", "queued", "state", "expected"), RULES)
def test_rule(rule: str, queued: str, state: dict[str, int], expected: str) -> None:
    every = [Queued.of(text, order) for order, text in enumerate(queued.split(", "))]
    prompts = [one for one in every if one.left]
    answers = [one for one in every if not one.left]
    batch = schedule(prompts[::-1], answers, **state)  # type: ignore[arg-type]
    found = [answer.name for answer in batch.answers]
    assert " ".join([*found, *(f"{p.name}{tokens}" for p, tokens in batch.prompts)]) == expected


@given(
    prompts=st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 2)), max_size=8),
    answers=st.lists(st.integers(0, 2), max_size=4),
)
def test_every_prompt_is_computed_once_and_nobody_starves(
    prompts: list[tuple[int, int]], answers: list[int]
) -> None:
    """Answers do not end, so the background lives on its share."""
    queue = [Queued(str(n), left, priority, n) for n, (left, priority) in enumerate(prompts)]
    talking = [Queued("x", 0, priority) for priority in answers]
    waited = 0
    for _ in range(600):
        batch = schedule(queue, talking, waited=waited)
        waited = 0 if batch.background else waited + 1
        assert sum(tokens for _, tokens in batch.prompts) <= 2048
        for prompt, tokens in batch.prompts:
            assert 0 < tokens <= prompt.left
            prompt.left -= tokens
        queue = [prompt for prompt in queue if prompt.left]
    assert not queue
