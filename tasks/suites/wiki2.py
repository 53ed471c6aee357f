"""2WikiMultihopQA: questions over two to four of ten passages (Ho et al. 2020)."""

from __future__ import annotations

from kvcomm.tasks.graders import by_words
from kvcomm.tasks.rows import Hub
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites.hotpotqa import PASSAGES, SHORT, read
from kvcomm.tasks.teams import rag_team

SUITE = Suite(
    "2wiki",
    "questions over two to four of ten passages",
    read,
    by_words,
    rag_team,
    ask=SHORT,
    passages=PASSAGES,
    hub=Hub("framolfese/2WikiMultihopQA", "validation"),
)
