"""The scheduler's side of learning: lessons and questions under way, and what models say."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass

from kvcomm.vllm.facts import Facts, Known, Told, together
from kvcomm.vllm.names import Name
from kvcomm.vllm.orders import Ask, Teach
from kvcomm.vllm.protocol import OffsetLesson, OffsetQuestion, Piece

# The most lessons that are ordered and not over.
LESSONS = 256


@dataclass(eq=False)
class Waiting:
    """A lesson of so many tokens that these ranks have still to learn."""

    ranks: set[int]
    tokens: int


class Teaching:
    """What `ranks` ranks learn. Lessons of more than `room` tokens in all do not wait.

    `learned` and `dropped` count those that are over, and those there was no room for.
    """

    def __init__(self, ranks: int, room: int) -> None:
        self.known = Known(ranks)
        self.learned = 0
        self.dropped = 0
        self._ranks = ranks
        self._room = room
        self._numbers = itertools.count(1)
        self._lessons: dict[int, Waiting] = {}
        self._answers: dict[int, dict[int, Told | None]] = {}

    def __len__(self) -> int:
        return len(self._lessons)

    def lesson(
        self, tokens: array[int], lesson: OffsetLesson, base: Name, literal: Name | None
    ) -> Teach | None:
        """A lesson of the prompt `tokens` as an order; None for one that cannot be."""
        there = tokens[lesson.start : lesson.stop]
        if len(there) < lesson.stop - lesson.start or not base.holds(there, lesson.origin):
            return None
        behind = 0
        if literal is not None and len(tokens) >= lesson.stop + len(literal.tokens):
            after = tokens[lesson.stop : lesson.stop + len(literal.tokens)]
            behind = len(after) if literal.holds(after, 0) else 0
        size = len(there) + behind
        waiting = sum(each.tokens for each in self._lessons.values())
        if len(self._lessons) >= LESSONS or waiting + size > self._room:
            self.dropped += 1
            return None
        number = next(self._numbers)
        self._lessons[number] = Waiting(set(range(self._ranks)), size)
        return Teach(
            number,
            lesson.model,
            base.entry,
            lesson.start,
            lesson.stop,
            lesson.origin,
            literal.entry if literal and behind else None,
            behind,
        )

    def ask(self, question: OffsetQuestion, name: Name | None) -> Ask | None:
        """A question as an order; None for one about what there is not."""
        if name is None or question.origin + question.tokens > len(name.tokens):
            return None
        number = next(self._numbers)
        self._answers[number] = {}
        return Ask(number, question.model, name.entry, question.origin, question.tokens)

    def answer(self, number: int | None) -> tuple[bool, str, int, float] | None:
        """What all ranks said to a question; None where they did not. It is over then."""
        found = self._answers.pop(number, {}) if number is not None else {}
        said = [told for told in found.values() if told is not None]
        return together(said).brief if len(said) == self._ranks else None

    def predicts(self, piece: Piece, name: Name, behind: Name | None) -> bool:
        """Whether a piece's model can say what it is asked for; one without a model need not."""
        if piece.model is None:
            return True
        told, text = self.known[piece.model], behind if piece.behind else name
        if told is None or not told.samples or text is None:
            return False
        if told.reach is not None and len(text.tokens) > told.reach:
            return False
        return not piece.behind or len(name.tokens) in told.literals

    def heard(self, facts: Facts, now: float) -> None:
        """Take in what workers say."""
        self.known.heard(facts.models, now)
        for rank, answers in facts.answers.items():
            for number, told in answers.items():
                if number in self._answers:
                    self._answers[number][rank] = told
        for rank, numbers in facts.lessons.items():
            for number in numbers:
                if (waiting := self._lessons.get(number)) is None:
                    continue
                waiting.ranks.discard(rank)
                if not waiting.ranks:
                    del self._lessons[number]
                    self.learned += 1
