"""Worked examples that readers and judges of passages continue: the form, and what is wanted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Worked:
    """A question over passages, the facts that decide it, and its answer.

    `misled` are facts that do not decide it, and `wrong` the answer that they suggest.
    """

    passages: tuple[str, ...]
    question: str
    facts: str
    answer: str
    misled: str = ""
    wrong: str = ""


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
        "Dunholt Abbey is a ruined monastery near Wexmoor.",
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
    ),
)


def answered() -> str:
    """Passages, question and answer of each example."""
    return "".join(f"{_asked(one)}Answer: {one.answer}\n\n" for one in WORKED)


def explained() -> str:
    """Passages, question, facts and answer of each example."""
    return "".join(f"{_asked(one)}Facts: {one.facts}\nAnswer: {one.answer}\n\n" for one in WORKED)


def judged(first: str, second: str) -> str:
    """Each question with what two readers wrote, and the final answer.

    The first reader writes facts and is misled where an example says how; the second is right.
    """
    return "".join(
        f"Question: {one.question}\n\n"
        f"{first} wrote:\nFacts: {one.misled or one.facts}\nAnswer: {one.wrong or one.answer}\n\n"
        f"{second} wrote:\nAnswer: {one.answer}\n\n"
        f"Final answer: {one.answer}\n\n\n"
        for one in WORKED
    )


def _asked(one: Worked) -> str:
    return "\n\n".join(one.passages) + f"\n\nQuestion: {one.question}\n"
