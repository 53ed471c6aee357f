"""The default teams: who hears whom, and what their tools do."""

from pathlib import Path

import pytest

from kvcomm.agents import Agent, Tool
from kvcomm.tasks import SUITES, Graders, Suite
from kvcomm.tasks.teams import code_team, rag_team
from tests.codecs import byte_codec

MATHS = ("gsm8k", "math500", "math-mini")


@pytest.fixture
def graders() -> Graders:
    return Graders(allow_unsandboxed=True)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_every_suite_has_a_team_that_takes_its_inputs(suite: Suite, graders: Graders) -> None:
    graph = suite.team(graders)
    assert set(graph.inputs) <= {"task", "question", "corpus"}
    assert graph.nodes[graph.answer].agent.exact  # who has the last word is never realigned


@pytest.mark.parametrize("name", ["hotpotqa", "rag-mini"])
def test_readers_of_passages_continue_worked_examples(name: str, graders: Graders) -> None:
    graph = SUITES[name].team(graders)
    begins = {"reader1": "Facts:", "reader2": "Answer:", "judge": "Final answer:"}
    for node, begin in begins.items():
        agent = graph.nodes[node].agent
        assert isinstance(agent, Agent)
        template = graph.template(node, byte_codec())
        text = byte_codec().decode([i for literal in template.literals for i in literal])
        assert (agent.begins, agent.chat) == (begin, False)
        assert text.count("\nQuestion: ") + text.startswith("Question: ") == 3
        assert text.count(begin) == 3
        assert text.endswith(f"\n{begin}")
        assert "<|im_start|>" not in text
        if node != "judge":  # the best passage stands next to the question
            assert template.names == ("passage4", "passage3", "passage2", "passage1", "question")


@pytest.mark.parametrize(
    ("name", "nodes", "begins", "stop"),
    [
        ("mmlu", ["judge"], "Answer:", "\n"),
        ("humaneval", ["programmer1", "programmer2", "reviewer"], "```python\n", "\n```"),
        *((name, ["judge"], "The final answer is $\\boxed{", "\n") for name in MATHS),
    ],
)
def test_answers_begin_at_once_and_end_with_their_line_or_block(
    name: str, nodes: list[str], begins: str, stop: str, graders: Graders
) -> None:
    team = SUITES[name].team(graders).nodes
    for node in nodes:
        agent = team[node].agent
        assert isinstance(agent, Agent)
        assert (agent.begins, agent.sampling.stop) == (begins, (stop,))


def test_the_tester_runs_the_tasks_own_examples(graders: Graders) -> None:
    tester = code_team(graders).nodes["tester"].agent
    assert isinstance(tester, Tool)
    task = 'def double(x):\n    """Twice.\n\n    >>> double(2)\n    4\n    """\n'
    report = tester.run(
        {
            "task": task,
            "programmer1": "```python\ndef double(x):\n    return 2 * x\n```",
            "programmer2": "```python\ndef double(x):\n    return x\n```",
        }
    )
    assert report == (
        "programmer1: 1 of 1 examples pass.\n"
        "programmer2: 0 of 1 examples pass. `double(2)` should give 4: gives 2"
    )


def test_readers_have_every_passage_as_a_placeholder(graders: Graders, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    graph = rag_team(graders, 3, folder=tmp_path)
    assert graph.inputs == ("question",)
    names = [sender.name for sender in graph.nodes["reader1"].senders]
    assert names == ["passage1", "passage2", "passage3"]
