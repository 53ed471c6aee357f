"""Agents: who they are, what they are asked, how they speak. And tools, which are code."""

from kvcomm.agents.agent import Agent
from kvcomm.agents.roles import ROLES, critic, editor, judge, programmer, retriever, role, solver
from kvcomm.agents.tool import Tool
from kvcomm.sampling import Sampling

__all__ = [
    "ROLES",
    "Agent",
    "Sampling",
    "Tool",
    "critic",
    "editor",
    "judge",
    "programmer",
    "retriever",
    "role",
    "solver",
]
