"""More of the letters that answers choose: `answers/letters.jsonl`, a kind, a text, its letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcomm.tasks.scoring.choice import chosen_letter

FILE = Path(__file__).parent / "answers" / "letters.jsonl"
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "letter", "choices"),
    [pytest.param(*case[1:], id=f"{case[0]}: {case[1]}") for case in CASES],
)
def test_letters_are_read(text: str, letter: str, choices: list[str]) -> None:
    assert (chosen_letter(text, choices) or "") == letter
