"""Agent graphs: who hears whom."""

from kvcomm.graphs.graph import AgentGraph, Node
from kvcomm.graphs.topologies import chain, debate, fully_connected, layered, random_dag, star, tree

__all__ = [
    "AgentGraph",
    "Node",
    "chain",
    "debate",
    "fully_connected",
    "layered",
    "random_dag",
    "star",
    "tree",
]
