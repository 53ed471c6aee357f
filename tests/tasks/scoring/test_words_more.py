"""More short answers: `answers/words.jsonl`, a kind, a text, the gold answer, whether it is met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcomm.tasks.scoring import score_qa

FILE = Path(__file__).parent / "answers" / "words.jsonl"
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [pytest.param(*case[1:], id=f"{case[0]}: {case[1]}") for case in CASES],
)
def test_words_are_read(text: str, gold: str, right: bool) -> None:
    assert score_qa(text, [gold]).correct == right
