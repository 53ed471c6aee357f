"""rag-mini: questions over simple passages and those of a made-up world, in HotpotQA's format."""

from __future__ import annotations

from kvcomm.tasks.graders import by_words
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites.hotpotqa import PASSAGES, SHORT, read
from kvcomm.tasks.teams import rag_team

SUITE = Suite(
    "rag-mini",
    "54 questions, half of them easy, shipped with kvcomm",
    read,
    by_words,
    rag_team,
    ask=SHORT,
    passages=PASSAGES,
    shipped=True,
)
