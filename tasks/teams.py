"""The graphs that suites are worked on with by default, after the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvcomm.agents import Agent, Tool, critic, judge, programmer, solver
from kvcomm.graphs import AgentGraph
from kvcomm.tasks.graders import Graders
from kvcomm.tasks.retrieval import bm25_retriever
from kvcomm.tasks.scoring.code import public_report

READ = "You answer questions from the passages you are given, and from nothing else."


def math_team(graders: Graders) -> AgentGraph:
    """Two solvers, a critic who hears them, and a judge who hears all three."""
    members = (solver("solver1"), solver("solver2"), critic(), judge())
    edges = [("solver1", "critic"), ("solver2", "critic")]
    edges += [(member.name, "judge") for member in members[:3]]
    return AgentGraph(members, edges, name="math")


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
        exact=True,
    )
    members = (programmer("programmer1"), programmer("programmer2"), Tool("tester", test), reviewer)
    edges = [(member.name, "tester") for member in members[:2]]
    edges += [(member.name, "reviewer") for member in members[:3]]
    return AgentGraph(members, edges, name="code")


def rag_team(graders: Graders, count: int = 4, folder: Path | None = None) -> AgentGraph:
    """A retriever, two readers of its passages, and a judge who hears the readers."""
    search = bm25_retriever(count, folder=folder)
    passages = "\n\n".join(f"{{{name}}}" for name in search.outputs)

    def reader(name: str, ask: str) -> Agent:
        return Agent(name, system=READ, prompt=f"{passages}\n\n{{task}}\n\n{ask}")

    members = (
        search,
        reader("reader1", "Answer, and name the passage that says so."),
        reader("reader2", "Find the facts step by step, then answer."),
        judge(),
    )
    edges = [("retriever", "reader1"), ("retriever", "reader2")]
    edges += [("reader1", "judge"), ("reader2", "judge")]
    return AgentGraph(
        members, edges, name="rag", inputs=("task",) if folder else ("task", "corpus")
    )
