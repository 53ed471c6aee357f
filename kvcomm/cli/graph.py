"""`kvcomm graph list|show`: what a graph looks like before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.agents import Agent, Tool
from kvcomm.cli import options
from kvcomm.cli.output import console, print_json, print_table, say
from kvcomm.trace.lanes import MOST

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph, Node
    from kvcomm.prompt import Piece

app = typer.Typer(no_args_is_help=True, help="Look at agent graphs.")


@app.command("list")
def list_graphs(json: options.Json = False) -> None:
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
def show(
    graph: Annotated[
        str, typer.Argument(metavar="G", help="A ready-made graph, or FILE.py[:NAME].")
    ],
    agents: options.Agents = None,
    rounds: options.Rounds = None,
    layout: options.Layout = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print mermaid text only.")] = False,
) -> None:
    """Who hears whom, and the prompt of each node with its placeholders bound."""
    from kvcomm.cli.topologies import build_graph

    built = build_graph(graph, agents=agents, rounds=rounds, seed=seed, layout=layout)
    if json:
        print_json(graph_json(built))
    elif mermaid:
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
    what = {
        "name": node.name,
        "agent": node.agent.name,
        "round": node.round,
        "senders": node.hears,
        "tool": isinstance(node.agent, Tool),
    }
    if isinstance(node.agent, Tool):
        return {**what, "texts": list(node.texts), "max_tokens": node.agent.max_tokens}
    system, prompt = bound_prompt(graph, node, node.agent)
    return {
        **what,
        "exact": node.agent.exact,
        "layout": node.agent.layout,
        "max_tokens": node.agent.sampling.max_tokens,
        "temperature": node.agent.sampling.temperature,
        "system": system,
        "prompt": prompt,
        "chat": node.agent.chat,
        "begins": node.agent.begins,
        "stop": list(node.agent.sampling.stop),
    }


def bound_prompt(graph: AgentGraph, node: Node, agent: Agent) -> tuple[str, str]:
    """System and user turn of a node, with `{NODE}` where a message goes."""
    from kvcomm.prompt import Text

    def spell(pieces: tuple[Piece, ...]) -> str:
        return "".join(p.text if isinstance(p, Text) else f"{{{p.name}}}" for p in pieces)

    system, prompt = agent.resolve(node.senders, graph.inputs)
    return spell(system), spell(prompt)


def _print(graph: AgentGraph) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from kvcomm.trace.text import plural

    out = console()
    inputs = ", ".join(graph.inputs)
    out.print(f"{graph.name}: {plural(len(graph.nodes), 'node')}, inputs {inputs}\n")
    out.print(Text(str(graph), no_wrap=True, overflow="ellipsis"))
    for name in graph.order[:MOST]:
        node = graph.nodes[name]
        if isinstance(node.agent, Tool):
            sends = f"tool, sends {', '.join(node.texts)}; at most {node.agent.max_tokens:,} tokens"
            out.print(Text.assemble("\n", (name, "bold"), f"  {sends}"))
            continue
        sampling = node.agent.sampling
        facts = [node.agent.layout, f"at most {sampling.max_tokens:,} tokens"]
        facts += [f"temperature {sampling.temperature:g}"] if sampling.temperature else []
        facts += ["exact"] if node.agent.exact else []
        facts += [] if node.agent.chat else ["plain completion"]
        facts += [f"stops at {', '.join(map(repr, sampling.stop))}"] if sampling.stop else []
        out.print(Text.assemble("\n", (name, "bold"), f"  {', '.join(facts)}"))
        texts = (*bound_prompt(graph, node, node.agent), node.agent.begins)
        for turn, text in zip(("system", "user", "answer begins"), texts, strict=True):
            if text:
                out.print(Text(f"  {turn}:", style="dim"))
                out.print(Padding(Text(_beginning(text)), (0, 0, 0, 4), expand=False))
    if len(graph.order) > MOST:
        out.print(f"\nand {len(graph.order) - MOST:,} more nodes: --json has them all")


def _beginning(text: str) -> str:
    """As many lines of a prompt as a reader looks through."""
    lines = text.split("\n")
    more = [f"… and {len(lines) - MOST:,} more lines"] if len(lines) > MOST else []
    return "\n".join([*lines[:MOST], *more])
