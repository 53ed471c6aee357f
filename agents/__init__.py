"""Agents: who they are, what they are asked, how they speak."""

from kvcomm.agents.agent import Agent
from kvcomm.agents.roles import (
    ROLES,
    critic,
    editor,
    judge,
    programmer,
    retriever,
    role,
    solver,
)
from kvcomm.sampling import Sampling

__all__ = [
    "ROLES",
    "Agent",
    "Sampling",
    "critic",
    "editor",
    "judge",
    "programmer",
    "retriever",
    "role",
    "solver",
]
