"""The graphs that suites are worked on with by default, after the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvcomm.agents import Agent, Sampling, Tool, critic, judge, programmer, solver
from kvcomm.graphs import AgentGraph
from kvcomm.tasks.graders import Graders
from kvcomm.tasks.retrieval import bm25_retriever
from kvcomm.tasks.scoring.code import public_report
from kvcomm.tasks.worked import answered, explained, judged

# A value or an answer in words is one line. Facts and an answer are a paragraph; code is a block.
LINE = Sampling(max_tokens=32, stop=("\n",))
FORMULA = Sampling(max_tokens=64, stop=("\n",))
PARAGRAPH = Sampling(max_tokens=96, stop=("\n\n",))
BLOCK = Sampling(stop=("\n```",))
OPENED = "```python\n"


def math_team(graders: Graders) -> AgentGraph:
    """Two solvers, a critic who hears them, and a judge who hears all three and fills a box."""
    return _solvers("math", judge(begins="The final answer is $\\boxed{", sampling=FORMULA))


def answer_team(graders: Graders) -> AgentGraph:
    """The same, and the judge answers in one line: a letter, a few words."""
    return _solvers("answer", judge(begins="Answer:", sampling=LINE))


def _solvers(name: str, last: Agent) -> AgentGraph:
    members = (solver("solver1"), solver("solver2"), critic(), last)
    edges = [("solver1", "critic"), ("solver2", "critic")]
    edges += [(member.name, last.name) for member in members[:3]]
    return AgentGraph(members, edges, name=name)


def code_team(graders: Graders) -> AgentGraph:
    """Two programmers, a tester who runs the task's own examples on their code, a reviewer."""

    def test(texts: Mapping[str, str]) -> str:
        reports = [
            f"{name}: {public_report(graders.sandbox, texts[name], texts['task'])}"
            for name in ("programmer1", "programmer2")
        ]
        return "\n".join(reports)

    reviewer = Agent(
        "reviewer",
        system="You review Python code and deliver the final version.",
        prompt="{task}\n\n{messages}\n\nWrite the final code in one ```python block.",
        begins=OPENED,
        sampling=BLOCK,
        exact=True,
    )
    first, second = (
        programmer(name, begins=OPENED, sampling=BLOCK) for name in ("programmer1", "programmer2")
    )
    members = (first, second, Tool("tester", test), reviewer)
    edges = [(member.name, "tester") for member in members[:2]]
    edges += [(member.name, "reviewer") for member in members[:3]]
    return AgentGraph(members, edges, name="code")


def rag_team(graders: Graders, count: int = 4, folder: Path | None = None) -> AgentGraph:
    """A retriever, two readers of its passages, and a judge who hears the readers.

    One reader writes the facts down first, the other answers at once. All three continue worked
    examples in a plain completion: small models and base models answer so as well. The best passage
    stands last, next to the question, where small models look first.
    """
    search = bm25_retriever(count, folder=folder, query="question")
    passages = "\n\n".join(f"{{{name}}}" for name in reversed(search.outputs))
    asked = f"{passages}\n\nQuestion: {{question}}\n"
    first, second = "reader1", "reader2"
    members = (
        search,
        Agent(first, prompt=explained() + asked, begins="Facts:", chat=False, sampling=PARAGRAPH),
        Agent(second, prompt=answered() + asked, begins="Answer:", chat=False, sampling=LINE),
        Agent(
            "judge",
            prompt=judged(first, second) + "Question: {question}\n\n{messages}\n\n",
            begins="Final answer:",
            chat=False,
            sampling=LINE,
            exact=True,
        ),
    )
    edges = [("retriever", first), ("retriever", second), (first, "judge"), (second, "judge")]
    return AgentGraph(
        members, edges, name="rag", inputs=("question",) if folder else ("question", "corpus")
    )
