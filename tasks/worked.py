"""Worked examples that readers and judges of passages continue: the form, and what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Worked:
    """A question over passages, the facts that decide it, its answer, and a wrong one."""

    passages: tuple[str, ...]
    question: str
    facts: str
    answer: str
    wrong: str


WORKED = (
    Worked(
        (
            "Dunholt Abbey\nDunholt Abbey is a ruined monastery near Wexmoor. It was founded in "
            "1147 by Ranulf Aske, a knight of the county.",
            "Ranulf Aske\nRanulf Aske (1101-1163) was a Norman knight. He was born in Rouen and "
            "fought at the Battle of the Standard.",
        ),
        "In which city was the founder of Dunholt Abbey born?",
        "Dunholt Abbey was founded by Ranulf Aske. Ranulf Aske was born in Rouen.",
        "Rouen",
        "Wexmoor",
    ),
    Worked(
        (
            "The Paper Lantern\nThe Paper Lantern is a 1962 film directed by Ida Moreau. It stars "
            "Luc Vasseur as a lighthouse keeper.",
            "Red Harvest Moon\nRed Harvest Moon is a 1958 film directed by Karl Brandt. It was "
            "shot in Norway.",
        ),
        "Which film came out first, The Paper Lantern or Red Harvest Moon?",
        "The Paper Lantern came out in 1962. Red Harvest Moon came out in 1958.",
        "Red Harvest Moon",
        "1958",
    ),
)


def answered(examples: Sequence[Worked] = WORKED) -> str:
    """Passages, question and answer of each example."""
    return "".join(f"{_asked(one)}Answer: {one.answer}\n\n" for one in examples)


def explained(examples: Sequence[Worked] = WORKED) -> str:
    """Passages, question, facts and answer of each example."""
    return "".join(f"{_asked(one)}Facts: {one.facts}\nAnswer: {one.answer}\n\n" for one in examples)


def judged(first: str, second: str, examples: Sequence[Worked] = WORKED) -> str:
    """Each question with what two readers wrote, and the final answer; now one reader is wrong."""
    parts = []
    for one, said in zip(examples, (examples[0].answer, examples[1].wrong), strict=True):
        parts.append(
            f"Question: {one.question}\n\n"
            f"{first} wrote:\nAnswer: {said}\n\n"
            f"{second} wrote:\nFacts: {one.facts}\nAnswer: {one.answer}\n\n"
            f"Final answer: {one.answer}\n\n\n"
        )
    return "".join(parts)


def _asked(one: Worked) -> str:
    return "\n\n".join(one.passages) + f"\n\nQuestion: {one.question}\n"
