"""The default teams: who hears whom, and what their tools do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcomm.agents import Tool
from kvcomm.tasks import SUITES, Graders, Suite
from kvcomm.tasks.teams import code_team, rag_team


@pytest.fixture
def graders() -> Graders:
    return Graders(allow_unsandboxed=True)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_every_suite_has_a_team_that_takes_its_inputs(suite: Suite, graders: Graders) -> None:
    graph = suite.team(graders)
    assert set(graph.inputs) <= {"task", "corpus"}
    assert graph.nodes[graph.answer].agent.exact  # who has the last word is never realigned


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
    assert graph.inputs == ("task",)
    names = [sender.name for sender in graph.nodes["reader1"].senders]
    assert names == ["passage1", "passage2", "passage3"]
