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


def _role(kind: str, about: str, system: str, ask: str, **usual: Any) -> Role:
    prompt = "{task}\n\n{history}\n\n{messages}\n\n" + ask

    def make(name: str = kind, *, max_tokens: int | None = None, **fields: Any) -> Agent:
        if max_tokens is not None:
            fields["sampling"] = replace(fields.get("sampling", Sampling()), max_tokens=max_tokens)
        return Agent(**{"name": name, "system": system, "prompt": prompt, **usual, **fields})

    make.__name__ = make.__qualname__ = kind
    make.__doc__ = about
    return make


solver = _role(
    "solver",
    "Works the task out step by step; in a debate it answers again after reading the others.",
    "You solve problems carefully. Work step by step and state the result.",
    "Solve the task and end with the answer.",
)
critic = _role(
    "critic",
    "Looks for mistakes in what others wrote.",
    "You check the work of others. Point out mistakes and correct them.",
    "Check the work above, step by step, and give the correct result.",
)
programmer = _role(
    "programmer",
    "Writes Python code.",
    "You write correct and simple Python code.",
    "Write the complete Python code that solves the task, and nothing else.",
)
judge = _role(
    "judge",
    "Decides between answers; `exact` by default: approximation hurts judges most.",
    "You judge the answers of others and decide which is right.",
    "Decide which answer is right and give the final answer.",
    exact=True,
)
retriever = _role(
    "retriever",
    "Picks from given material what bears on the task.",
    "You find the facts that bear on a question in the material you are given.",
    "Quote the facts from the material that help with the task. Do not answer it.",
)
editor = _role(
    "editor",
    "Writes the final answer from what others found.",
    "You write the final answer from the work of others, short and clear.",
    "Write the final answer.",
)
ROLES: dict[str, Role] = {
    make.__name__: make for make in (solver, critic, programmer, judge, retriever, editor)
}


def role(kind: str, **fields: Any) -> Agent:
    """The role called `kind`. Raises `UsageError` for an unknown one."""
    if kind not in ROLES:
        raise UsageError(f"role {kind!r} is unknown: choose one of {', '.join(ROLES)}")
    return ROLES[kind](**fields)
