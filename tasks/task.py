"""Tasks: a text to work on, and what a right answer is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Task:
    """One sample of a suite. `target` is the right answer, as text; `accepted` others as good.

    `passages` are texts to read beside the question: the inputs `passage1`, `passage2`, …; `gold`
    are those that hold the answer;
    `corpus` are those among which a retriever looks for them: the input `corpus`, one passage a
    paragraph. `row` is what the task was read from.
    """

    id: str
    input: str
    target: str
    passages: tuple[str, ...] = ()
    corpus: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    gold: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs of a graph that works on this task."""
        names = passage_names(len(self.passages))
        return {"task": self.input, **dict(zip(names, self.passages, strict=True))}

    def inputs_for(self, names: Iterable[str], ask: str = "") -> dict[str, str]:
        """The inputs called `names`: `question` is the task's text, `task` has `ask` behind it.

        Raises `UsageError` for a name that the task does not bring.
        """
        known = {"question": self.input, **self.inputs}
        if ask:
            known["task"] += f"\n\n{ask}"
        if self.corpus:
            known["corpus"] = "\n\n".join(self.corpus)
        if missing := [name for name in names if name not in known]:
            raise UsageError(
                f"the graph asks for the input `{missing[0]}`, but task {self.id} brings "
                f"{', '.join(known)}"
            )
        return {name: known[name] for name in names}


def passage_names(count: int) -> tuple[str, ...]:
    """The names of the inputs that hold a task's passages."""
    return tuple(f"passage{number}" for number in range(1, count + 1))
