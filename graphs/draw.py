"""A graph as characters for the terminal, and as mermaid text for documents."""

from __future__ import annotations

from kvcomm.agents import Tool
from kvcomm.graphs.graph import AgentGraph
from kvcomm.trace.lanes import draw_lanes

# What mermaid would not take for text, in its own way of writing characters.
ENTITIES = str.maketrans({sign: f"#{ord(sign)};" for sign in '"<>&#`'})


def draw(graph: AgentGraph) -> str:
    """One lane a node, grouped by topological level; the nodes of a level may run at once."""
    senders = {name: node.hears for name, node in graph.nodes.items()}
    notes = {
        name: ", ".join(
            word
            for word, holds in (
                ("answer", name == graph.answer),
                ("exact", node.agent.exact),
                ("tool", isinstance(node.agent, Tool)),
            )
            if holds
        )
        for name, node in graph.nodes.items()
    }
    return draw_lanes(senders, notes)


def mermaid(graph: AgentGraph) -> str:
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
