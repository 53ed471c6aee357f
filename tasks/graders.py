"""The ways to score that suites choose from, and what they need: a process, a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from kvcomm.tasks.scoring import MathScorer, Score, score_choice, score_qa
from kvcomm.tasks.scoring.code import score_code
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox
from kvcomm.tasks.task import Task

LETTERS = "ABCD"
Grade = Callable[[Task, str, "Graders"], Score]


class Graders:
    """Started when they are first used, ended by `close` or at the end of a `with` block."""

    def __init__(self, allow_unsandboxed: bool = False) -> None:
        self._allow_unsandboxed = allow_unsandboxed

    def __reduce__(self) -> tuple[object, ...]:
        # A copy in another process starts its own.
        return Graders, (self._allow_unsandboxed,)

    @cached_property
    def math(self) -> MathScorer:
        """The process that compares mathematical expressions."""
        return MathScorer()

    @cached_property
    def sandbox(self) -> Sandbox:
        """The best sandbox here. Raises `UsageError` when there is none and none is insisted on."""
        return find_sandbox(self._allow_unsandboxed)

    def ready(self, grade: Grade) -> None:
        """Find what `grade` will need. Raises `UsageError` where it is not there."""
        needs: dict[Grade, str] = {by_math: "math", by_tests: "sandbox"}
        if grade in needs:
            getattr(self, needs[grade])

    def close(self) -> None:
        """End the processes."""
        if "math" in self.__dict__:
            self.math.close()

    def __enter__(self) -> Graders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def by_math(task: Task, answer: str, graders: Graders) -> Score:
    """The answer is the same number or expression as the target."""
    return graders.math.score(answer, task.target)


def by_words(task: Task, answer: str, graders: Graders) -> Score:
    """The answer has the words of the target, or of another accepted answer (EM; F1 beside it)."""
    return score_qa(answer, (task.target, *task.accepted))


def by_letter(task: Task, answer: str, graders: Graders) -> Score:
    """The answer chooses the target's letter."""
    return score_choice(answer, task.target, task.row["choices"])


def by_tests(task: Task, answer: str, graders: Graders) -> Score:
    """The code in the answer passes the row's tests, in a sandbox."""
    row = task.row
    return score_code(
        graders.sandbox, answer, row["prompt"], row["entry_point"], row["test"], Limits()
    )
