"""`kvcomm graph list|show`: what a graph looks like before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.padding import Padding
from rich.text import Text

from kvcomm.agents import Agent, Tool
from kvcomm.cli import options
from kvcomm.cli.output import console, print_json, print_table, say
from kvcomm.prompt import Text as Literal
from kvcomm.trace.lanes import MOST
from kvcomm.trace.text import plural

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph, Node

app = typer.Typer(no_args_is_help=True, help="Look at agent graphs.")


@app.command("list")
@options.takes()
def list_graphs(*, json: bool = False) -> None:
    """The ready-made graphs that --graph takes."""
    from kvcomm.cli.topologies import TOPOLOGIES

    if json:
        graphs = [{"name": n, "agents": t.agents, "about": t.about} for n, t in TOPOLOGIES.items()]
        print_json({"graphs": graphs})
        return
    rows = [
        (name, f"{topology.agents}{' + judge' if name == 'debate' else ''}", topology.about)
        for name, topology in TOPOLOGIES.items()
    ]
    own = ("FILE.py[:NAME]", "", "your own AgentGraph, at module level of a Python file")
    print_table(("graph", ">agents", "~what it is"), [*rows, own])


@app.command("show")
@options.takes(
    graph=options.Option("G", "A ready-made graph, or FILE.py[:NAME]."),
    as_mermaid=options.Option("", "Print mermaid text only.", "--mermaid"),
)
def show(
    graph: str,
    *,
    agents: int | None = None,
    rounds: int | None = None,
    layout: str | None = None,
    seed: int = 0,
    json: bool = False,
    as_mermaid: bool = False,
) -> None:
    """Who hears whom, and the prompt of each node with its placeholders bound."""
    from kvcomm.cli.topologies import build_graph

    built = build_graph(graph, agents=agents, rounds=rounds, seed=seed, layout=layout)
    if json:
        print_json(graph_json(built))
    elif as_mermaid:
        say(built.mermaid())
    else:
        _print(built)


def graph_json(graph: AgentGraph) -> dict[str, Any]:
    """The object that `kvcomm graph show --json` prints."""
    return {
        "name": graph.name,
        "answer": graph.answer,
        "inputs": list(graph.inputs),
        "levels": graph.levels(),
        "nodes": [_node_json(graph, node) for node in graph.nodes.values()],
    }


def _node_json(graph: AgentGraph, node: Node) -> dict[str, Any]:
    agent = node.agent
    what: dict[str, Any] = {"name": node.name, "agent": agent.name, "round": node.round}
    what |= {"senders": node.hears, "tool": isinstance(agent, Tool)}
    if isinstance(agent, Tool):
        return {**what, "texts": list(node.texts), "max_tokens": agent.max_tokens}
    turns = zip(("system", "prompt", "begins"), _turns(graph, node, agent).values(), strict=True)
    return {
        **what,
        **{name: getattr(agent, name) for name in ("exact", "layout", "chat")},
        **{name: getattr(agent.sampling, name) for name in ("max_tokens", "temperature")},
        **dict(turns),
        "stop": list(agent.sampling.stop),
    }


def _turns(graph: AgentGraph, node: Node, agent: Agent) -> dict[str, str]:
    """System and user turn of an agent, with `{NODE}` where a message goes, and its beginning."""
    turns = [
        "".join(p.text if isinstance(p, Literal) else f"{{{p.name}}}" for p in pieces)
        for pieces in agent.resolve(node.senders, graph.inputs)
    ]
    return dict(zip(("system", "user", "answer begins"), (*turns, agent.begins), strict=True))


def _print(graph: AgentGraph) -> None:
    out = console()
    inputs = ", ".join(graph.inputs)
    out.print(f"{graph.name}: {plural(len(graph.nodes), 'node')}, inputs {inputs}\n")
    out.print(Text(str(graph), no_wrap=True, overflow="ellipsis"))
    for name in graph.order[:MOST]:
        node = graph.nodes[name]
        agent = node.agent
        out.print(Text.assemble("\n", (name, "bold"), f"  {', '.join(_facts(node, agent))}"))
        turns = {} if isinstance(agent, Tool) else _turns(graph, node, agent)
        for turn, text in turns.items():
            if text:
                lines = text.split("\n")
                more = [f"… and {len(lines) - MOST:,} more lines"] if len(lines) > MOST else []
                body = Text("\n".join([*lines[:MOST], *more]))
                out.print(
                    Text(f"  {turn}:", style="dim"), Padding(body, (0, 0, 0, 4), expand=False)
                )
    if len(graph.order) > MOST:
        out.print(f"\nand {len(graph.order) - MOST:,} more nodes: --json has them all")


def _facts(node: Node, agent: Agent | Tool) -> list[str]:
    if isinstance(agent, Tool):
        return [f"tool, sends {', '.join(node.texts)}; at most {agent.max_tokens:,} tokens"]
    sampling = agent.sampling
    stops = ", ".join(map(repr, sampling.stop))
    facts = {
        agent.layout: True,
        f"at most {sampling.max_tokens:,} tokens": True,
        f"temperature {sampling.temperature:g}": sampling.temperature,
        "exact": agent.exact,
        "plain completion": not agent.chat,
        f"stops at {stops}": stops,
    }
    return [fact for fact, holds in facts.items() if holds]
