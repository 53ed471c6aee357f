"""The roles that come with kvcomm; each returns an `Agent`.

They take any field of an agent, and `max_tokens` for that of its sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvcomm.agents.agent import Agent
from kvcomm.errors import UsageError
from kvcomm.sampling import Sampling

Role = Callable[..., Agent]


def _make(name: str, system: str, ask: str, fields: dict[str, Any]) -> Agent:
    max_tokens = fields.pop("max_tokens", None)
    if max_tokens is not None:
        sampling = fields.get("sampling", Sampling())
        fields["sampling"] = replace(sampling, max_tokens=max_tokens)
    prompt = "{task}\n\n{history}\n\n{messages}\n\n" + ask
    return Agent(**{"name": name, "system": system, "prompt": prompt, **fields})


def solver(name: str = "solver", **fields: Any) -> Agent:
    """Works the task out step by step; in a debate it answers again after reading the others."""
    return _make(
        name,
        "You solve problems carefully. Work step by step and state the result.",
        "Solve the task and end with the answer.",
        fields,
    )


def critic(name: str = "critic", **fields: Any) -> Agent:
    """Looks for mistakes in what others wrote."""
    return _make(
        name,
        "You check the work of others. Point out mistakes and correct them.",
        "Check the work above, step by step, and give the correct result.",
        fields,
    )


def programmer(name: str = "programmer", **fields: Any) -> Agent:
    """Writes Python code."""
    return _make(
        name,
        "You write correct and simple Python code.",
        "Write the complete Python code that solves the task, and nothing else.",
        fields,
    )


def judge(name: str = "judge", **fields: Any) -> Agent:
    """Decides between answers; `exact` by default: approximation hurts judges most."""
    return _make(
        name,
        "You judge the answers of others and decide which is right.",
        "Decide which answer is right and give the final answer.",
        {"exact": True, **fields},
    )


def retriever(name: str = "retriever", **fields: Any) -> Agent:
    """Picks from given material what bears on the task."""
    return _make(
        name,
        "You find the facts that bear on a question in the material you are given.",
        "Quote the facts from the material that help with the task. Do not answer it.",
        fields,
    )


def editor(name: str = "editor", **fields: Any) -> Agent:
    """Writes the final answer from what others found."""
    return _make(
        name,
        "You write the final answer from the work of others, short and clear.",
        "Write the final answer.",
        fields,
    )


ROLES: dict[str, Role] = {
    make.__name__: make for make in (solver, critic, programmer, judge, retriever, editor)
}


def role(kind: str, **fields: Any) -> Agent:
    """The role called `kind`. Raises `UsageError` for an unknown one."""
    if kind not in ROLES:
        raise UsageError(f"role {kind!r} is unknown: choose one of {', '.join(ROLES)}")
    return ROLES[kind](**fields)
