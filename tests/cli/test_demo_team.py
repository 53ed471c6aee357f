"""The demo's texts hold what its questions ask for."""

from __future__ import annotations

import pytest

from kvcomm.cli.demo_team import QUESTIONS, Question, team
from kvcomm.engine.local import LocalEngine
from kvcomm.runtime.exchanges import EXCHANGES
from kvcomm.runtime.session import Session


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_the_fact_stands_in_the_text_and_not_in_the_question(question: Question) -> None:
    assert question.right(question.passage)
    assert not question.right(question.text)
    others = {other.passage for other in QUESTIONS} - {question.passage}
    assert not any(question.right(text) for text in others)


def test_texts_are_long_and_come_back() -> None:
    texts = [question.passage for question in QUESTIONS]
    assert all(700 <= len(text.split()) <= 900 for text in texts)
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert not {part for exchange in EXCHANGES for part in exchange} & set(texts)


def test_right_is_what_names_the_fact() -> None:
    question = Question("id", "maddock-ferry", "Who?", "Rosa Lindgren")
    assert question.right("Answer: it is rosa lindgren.")
    assert not question.right("Answer: Rosa, and Mr Lindgren.")


def test_everybody_reads_the_text_and_those_before() -> None:
    graph = team()
    heard = {name: node.hears for name, node in graph.nodes.items()}
    assert heard == {"reader": [], "checker": ["reader"], "editor": ["reader", "checker"]}
    assert all("{text}" in node.agent.prompt for node in graph.nodes.values())


@pytest.mark.slow
def test_the_embedded_model_finds_every_fact(smol: LocalEngine) -> None:
    # `kvcomm` takes texts for examples that are no shorter.
    assert len({len(smol.codec.encode(q.passage)) for q in QUESTIONS}) == 1
    with Session(smol, reuse="dense", state=None, runs=None) as session:
        for question in QUESTIONS:
            answer = session.run(team(), text=question.passage, question=question.text).answer
            assert question.right(answer), answer
