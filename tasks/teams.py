"""The graphs that suites are worked on with by default, after the paper's.

Readers and judges of passages continue worked examples. A line of `data/worked.jsonl` holds
passages, a question, the facts that decide it, and its answer; `misled` are the facts that a reader
may be misled by, `wrong` the answer that those suggest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcomm.agents import Agent, Sampling, Tool, critic, judge, programmer, solver
from kvcomm.graphs import AgentGraph
from kvcomm.tasks.graders import Graders
from kvcomm.tasks.retrieval import bm25_retriever
from kvcomm.tasks.scoring.code import public_report
from kvcomm.tasks.task import DATA

# A value or an answer in words is one line. Facts and an answer are a paragraph; code is a block.
LINE = Sampling(max_tokens=32, stop=("\n",))
FORMULA = Sampling(max_tokens=64, stop=("\n",))
PARAGRAPH = Sampling(max_tokens=96, stop=("\n\n",))
BLOCK = Sampling(stop=("\n```",))
OPENED = "```python\n"
WORKED: list[dict[str, Any]] = [
    json.loads(line) for line in (DATA / "worked.jsonl").read_text(encoding="utf-8").splitlines()
]


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
        Agent(first, prompt=_explained() + asked, begins="Facts:", chat=False, sampling=PARAGRAPH),
        Agent(second, prompt=_answered() + asked, begins="Answer:", chat=False, sampling=LINE),
        Agent(
            "judge",
            prompt=_judged(first, second) + "Question: {question}\n\n{messages}\n\n",
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


def _answered() -> str:
    """Passages, question and answer of each example."""
    return "".join(f"{_asked(one)}Answer: {one['answer']}\n\n" for one in WORKED)


def _explained() -> str:
    """Passages, question, facts and answer of each example."""
    form = "{asked}Facts: {facts}\nAnswer: {answer}\n\n"
    return "".join(form.format(asked=_asked(one), **one) for one in WORKED)


def _judged(first: str, second: str) -> str:
    """Each question with what two readers wrote, and the final answer.

    The first reader writes facts and may be misled; the second is right.
    """
    form = (
        f"Question: {{question}}\n\n{first} wrote:\nFacts: {{misled}}\nAnswer: {{wrong}}\n\n"
        f"{second} wrote:\nAnswer: {{answer}}\n\nFinal answer: {{answer}}\n\n\n"
    )
    return "".join(form.format(**one) for one in WORKED)


def _asked(one: dict[str, Any]) -> str:
    return "\n\n".join(one["passages"]) + f"\n\nQuestion: {one['question']}\n"
