"""Mathematics over real golds in the forms that models write, and over real solutions."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from kvcomm.tasks.scoring import MathScorer
from tests.tasks.real import real_rows

pytestmark = pytest.mark.slow

# Frames around a gold answer of MATH-500 and AIME, marked and not.
FRAMES = [
    "So it is $\\boxed{GOLD}$.",
    "We get $\\boxed{1}$ first. Then the total is $\\boxed{GOLD}$.",
    "Thus the answer is \\boxed{GOLD}. This completes the solution.",
    "\\[\n\\boxed{GOLD}\n\\]",
    "Answer: GOLD",
    "Answer: $GOLD$",
    "**Answer:** $GOLD$",
    "**Answer**: GOLD",
    "The answer is GOLD.",
    "Therefore, the answer is $GOLD$.",
    "The answer is \\(GOLD\\).",
    "Some steps.\n#### GOLD",
    "Final Answer: The final answer is $GOLD$. I hope it is correct.",
    "The final answer is:\n\\[\nGOLD\n\\]",
    "Answer:\n$$GOLD$$",
    "**Final Answer**\n\n$GOLD$",
    "So we get\n$$GOLD$$",
    "### Final Answer\n\\[ GOLD \\]",
]
# Endings behind a solution of GSM8K; GROUPED is the number with separators.
ENDINGS = [
    "#### GOLD",
    "#### $GROUPED",
    "The answer is GOLD.",
    "The answer is: **GOLD**",
    "So the answer is $GOLD.",
    "The final answer is GOLD.",
    "The answer is $\\boxed{GOLD}$ dollars.",
    "Answer: GROUPED",
    "Answer: GOLD apples",
    "**Answer: GOLD**",
    "**Final Answer**\nGOLD dollars per week",
    "**GOLD**",
    "\\boxed{GOLD}",
    "\\[ \\boxed{GOLD \\text{ eggs}} \\]",
    "She makes $GOLD a day.",
    "So the total is GOLD dollars.",
    "It adds up to GROUPED.",
    "Total = GOLD",
    "Therefore, $x = GOLD$.",
    "Thus, they need \\(GOLD\\) in total.",
]


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathScorer]:
    with MathScorer() as made:
        yield made


def golds() -> list[str]:
    found = [str(row["answer"]) for name in ("math500", "aime2024") for row in real_rows(name)]
    assert len(found) == 530
    return found


@pytest.mark.parametrize("frame", FRAMES)
def test_every_gold_answer_is_right_in_every_frame(scorer: MathScorer, frame: str) -> None:
    texts = [(frame.replace("GOLD", gold), gold) for gold in golds()]
    assert [gold for text, gold in texts if not scorer.score(text, gold).correct] == []


@pytest.mark.parametrize("frame", ["\\boxed{GOLD}", "The answer is GOLD.", "So we get\n$$GOLD$$"])
def test_other_gold_answers_are_wrong(scorer: MathScorer, frame: str) -> None:
    different = sorted(set(golds()))
    drawn = random.Random(1)
    pairs = [drawn.sample(different, 2) for _ in range(3000 if "box" in frame else 1000)]
    right = [
        (answer, gold)
        for answer, gold in pairs
        if not same(answer, gold) and scorer.score(frame.replace("GOLD", answer), gold).correct
    ]
    assert right == []


def same(answer: str, gold: str) -> bool:
    """Whether two different texts are one answer: a leading zero, a degree sign, a dollar sign."""
    bare = [text.replace("^\\circ", "").replace("\\$", "").lstrip("0") for text in (answer, gold)]
    return bare[0] == bare[1]


@pytest.mark.parametrize("ending", ENDINGS)
def test_solutions_with_their_number_behind(scorer: MathScorer, ending: str) -> None:
    wrong = []
    for row in real_rows("gsm8k"):
        solution, _, gold = row["answer"].rpartition("####")
        gold = gold.strip().replace(",", "")
        end = ending.replace("GOLD", gold).replace("GROUPED", f"{int(gold):,}")
        if not scorer.score(solution + end, gold).correct:
            wrong.append(end)
    assert wrong == []


def test_solutions_as_they_are(scorer: MathScorer) -> None:
    rows = real_rows("gsm8k")
    assert len(rows) == 1319
    texts = [row["answer"] for row in rows]
    right = [scorer.score(text, text.rpartition("####")[2].strip()).correct for text in texts]
    assert all(right)
