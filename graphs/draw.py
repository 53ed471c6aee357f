"""A graph as characters for the terminal, and as mermaid text for documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvcomm.agents import Tool
from kvcomm.trace.lanes import draw_lanes, marked

# What mermaid would not take for text, in its own way of writing characters.
ENTITIES = str.maketrans({sign: f"#{ord(sign)};" for sign in '"<>&#`'})


class Drawable(Protocol):
    """A graph, as far as it is drawn."""

    @property
    def nodes(self) -> Mapping[str, Any]: ...

    @property
    def edges(self) -> Sequence[tuple[str, str]]: ...

    @property
    def answer(self) -> str: ...


def draw(graph: Drawable) -> str:
    """One lane a node, grouped by topological level; the nodes of a level may run at once."""
    senders = {name: node.hears for name, node in graph.nodes.items()}
    notes = {
        name: marked(name == graph.answer, node.agent.exact, isinstance(node.agent, Tool))
        for name, node in graph.nodes.items()
    }
    return draw_lanes(senders, notes)


def mermaid(graph: Drawable) -> str:
    """The graph as a mermaid flowchart: text only, to be pasted where mermaid is rendered."""
    # Mermaid ids may hold neither `@` nor keywords such as `end`, so nodes are numbered.
    ids = {name: f"n{index}" for index, name in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for name in graph.nodes:
        opening, closing = ("([", "])") if name == graph.answer else ("[", "]")
        label = name.translate(ENTITIES)
        lines.append(f'    {ids[name]}{opening}"{label}"{closing}')
    lines += [f"    {ids[source]} --> {ids[target]}" for source, target in graph.edges]
    return "\n".join(lines)
