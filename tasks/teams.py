"""The graphs that suites are worked on with by default, after the paper's.

Readers and judges of passages continue worked examples. A line of `data/worked.jsonl` holds
passages, a question, the facts that decide it, and its answer; `misled` are the facts that a reader
may be misled by, `wrong` the answer that those suggest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from kvcomm.agents import Agent, Sampling, Tool, critic, judge, programmer, solver
from kvcomm.graphs import AgentGraph
from kvcomm.tasks.graders import Graders
from kvcomm.tasks.retrieval import bm25_retriever
from kvcomm.tasks.scoring.code import public_report
from kvcomm.tasks.task import DATA, passage_names

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
    pair = ("solver1", "solver2")
    edges = [(one, reader) for reader in ("critic", "judge") for one in pair]
    edges.append(("critic", "judge"))
    return AgentGraph([*map(solver, pair), critic(), last], edges, name=name)


def code_team(graders: Graders) -> AgentGraph:
    """Two programmers, a tester who runs the task's own examples on their code, a reviewer."""
    names = ("programmer1", "programmer2")

    def test(texts: Mapping[str, str]) -> str:
        return "\n".join(
            f"{name}: {public_report(graders.sandbox, texts[name], texts['task'])}"
            for name in names
        )

    reviewer = Agent(
        "reviewer",
        system="You review Python code and deliver the final version.",
        prompt="{task}\n\n{messages}\n\nWrite the final code in one ```python block.",
        begins=OPENED,
        sampling=BLOCK,
        exact=True,
    )
    first, second = (programmer(name, begins=OPENED, sampling=BLOCK) for name in names)
    edges = [(name, reader) for reader in ("tester", "reviewer") for name in names]
    edges.append(("tester", "reviewer"))
    return AgentGraph([first, second, Tool("tester", test), reviewer], edges, name="code")


def rag_team(graders: Graders, count: int = 4, folder: Path | None = None) -> AgentGraph:
    """A retriever, two readers of its passages, and a judge who hears the readers.

    One reader writes the facts down first, the other answers at once. All three continue worked
    examples in a plain completion: small models and base models answer so as well. The best passage
    stands last, next to the question, where small models look first.
    """
    search = bm25_retriever(count, folder=folder, query="question")
    asked = _over(search.outputs)
    first, second = "reader1", "reader2"
    form = "{asked}Facts: {facts}\nAnswer: {answer}\n\n"
    explained = "".join(form.format(asked=_asked(one), **one) for one in WORKED)
    # Each question with what two readers wrote: the first may be misled, the second is right.
    form = (
        f"Question: {{question}}\n\n{first} wrote:\nFacts: {{misled}}\nAnswer: {{wrong}}\n\n"
        f"{second} wrote:\nAnswer: {{answer}}\n\nFinal answer: {{answer}}\n\n\n"
    )
    judged = "".join(form.format(**one) for one in WORKED)
    paragraph: dict[str, Any] = {"chat": False, "sampling": PARAGRAPH}
    line: dict[str, Any] = {"chat": False, "sampling": LINE}
    ask = judged + "Question: {question}\n\n{messages}\n\n"
    members = (
        search,
        Agent(first, prompt=explained + asked, begins="Facts:", **paragraph),
        reader(second, count),
        Agent("judge", prompt=ask, begins="Final answer:", exact=True, **line),
    )
    edges = [*product(("retriever",), (first, second)), *product((first, second), ("judge",))]
    inputs = ("question",) if folder else ("question", "corpus")
    return AgentGraph(members, edges, name="rag", inputs=inputs)


def reader(name: str = "reader", count: int = 4) -> Agent:
    """Answers a question over so many passages, the best of which is the first, in one line."""
    answered = "".join(f"{_asked(one)}Answer: {one['answer']}\n\n" for one in WORKED)
    prompt = answered + _over(passage_names(count))
    return Agent(name, prompt=prompt, begins="Answer:", chat=False, sampling=LINE)


def _over(names: Sequence[str]) -> str:
    return "\n\n".join(f"{{{name}}}" for name in reversed(names)) + "\n\nQuestion: {question}\n"


def _asked(one: dict[str, Any]) -> str:
    return "\n\n".join(one["passages"]) + f"\n\nQuestion: {one['question']}\n"
