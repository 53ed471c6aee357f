"""From `--graph`, `--agents` and the like to an `AgentGraph`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvcomm import graphs
from kvcomm.agents import Agent, judge, role
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.own_file import Wanted, is_own_file, load_own

GRAPH = Wanted(AgentGraph, "graph", "graph = chain(solver(), editor())")
# In some graphs every agent hears every other one.
MOST = 1000


@dataclass(frozen=True)
class Topology:
    """A ready-made graph: `build(agents, rounds, seed)`."""

    about: str
    agents: int
    build: Callable[[int, int, int], AgentGraph]


def team(count: int, kinds: tuple[str, ...] = ("solver", "critic")) -> list[Agent]:
    """`count` agents who take turns in `kinds`; the last of several is the editor."""
    names = [kinds[i % len(kinds)] for i in range(count)]
    return _numbered([*names[:-1], "editor"] if count > 1 else names)


def _numbered(kinds: list[str]) -> list[Agent]:
    """Agents of these roles under unique names: solver, critic, solver2, …"""
    seen: Counter[str] = Counter()
    agents = []
    for kind in kinds:
        seen[kind] += 1
        agents.append(role(kind, name=kind if seen[kind] == 1 else f"{kind}{seen[kind]}"))
    return agents


def _star(count: int, _rounds: int, _seed: int) -> AgentGraph:
    *leaves, hub = team(count, ("solver",))
    return graphs.star(hub, *leaves)


def _layered(count: int, _rounds: int, _seed: int) -> AgentGraph:
    """Solvers, then critics who hear them all, then an editor."""
    critics = (count - 1) // 2
    layers = (["solver"] * (count - 1 - critics), ["critic"] * critics, ["editor"])
    return graphs.layered(*(_numbered(layer) for layer in layers if layer))


def _tree(count: int, _rounds: int, _seed: int) -> AgentGraph:
    """An editor at the root, critics inside, solvers at the leaves."""
    kinds = ["critic" if 2 * i + 1 < count else "solver" for i in range(count)]
    return graphs.tree(*_numbered(["editor", *kinds[1:]] if count > 1 else kinds))


TOPOLOGIES: dict[str, Topology] = {
    "chain": Topology(
        "each agent hears the one before it", 3, lambda n, r, s: graphs.chain(*team(n))
    ),
    "full": Topology(
        "each agent hears all agents before it", 3, lambda n, r, s: graphs.fully_connected(*team(n))
    ),
    "debate": Topology(
        "all agents answer, hear each other and answer again; a judge decides",
        2,
        lambda n, r, s: graphs.debate(*_numbered(["solver"] * n), rounds=r, judge=judge()),
    ),
    "star": Topology("an editor hears all the others", 4, _star),
    "layered": Topology("solvers, critics who hear all of them, an editor", 5, _layered),
    "tree": Topology("pairs are merged up to an editor at the root", 7, _tree),
    "random": Topology(
        "each agent hears some of those before it, drawn by --seed",
        5,
        lambda n, r, s: graphs.random_dag(*team(n, ("solver",)), seed=s),
    ),
}


def build_graph(
    name: str,
    *,
    agents: int | None = None,
    rounds: int | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
    temperature: float | None = None,
    layout: str | None = None,
) -> AgentGraph:
    """The graph that the options ask for; the last three change every agent of it.

    Raises `UsageError` for an unknown graph, and for options that the graph has no use for.
    """
    if is_own_file(name):
        if agents is not None or rounds is not None:
            raise UsageError("--agents and --rounds do not apply to a graph file: change the file")
        graph = load_own(name, GRAPH)
    else:
        graph = _ready_made(name, agents, rounds, seed)
    return adjusted(graph, max_tokens, temperature, layout)


def _ready_made(name: str, agents: int | None, rounds: int | None, seed: int) -> AgentGraph:
    if name not in TOPOLOGIES:
        raise UsageError(
            f"graph {name!r} is unknown: choose one of {', '.join(TOPOLOGIES)}, or FILE.py[:NAME]"
        )
    topology = TOPOLOGIES[name]
    if agents is not None and agents < 1:
        raise UsageError(f"--agents {agents}: a graph needs at least 1 agent")
    if agents is not None and agents > MOST:
        raise UsageError(f"--agents {agents}: at most {MOST:,}; write larger graphs into a FILE.py")
    if rounds is not None and name != "debate":
        raise UsageError(f"--rounds belongs to --graph debate: a {name} graph has no rounds")
    agents, rounds = agents or topology.agents, 2 if rounds is None else rounds
    if agents * rounds > 2 * MOST:
        raise UsageError(
            f"--rounds {rounds}: a debate of {agents} agents takes {2 * MOST // agents:,} at most"
        )
    return topology.build(agents, rounds, seed)


def adjusted(
    graph: AgentGraph, max_tokens: int | None, temperature: float | None, layout: str | None
) -> AgentGraph:
    """The graph with these fields of every agent changed, where they are given."""
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    sampling = {name: value for name, value in sampling.items() if value is not None}

    def adjust(agent: Agent) -> Agent:
        changed = replace(agent.sampling, **sampling)  # type: ignore[arg-type]
        return replace(agent, sampling=changed, layout=agent.layout if layout is None else layout)  # type: ignore[arg-type]

    return graph.with_agents(adjust) if sampling or layout is not None else graph


def with_passages(graph: AgentGraph, names: Sequence[str]) -> AgentGraph:
    """The graph whose agents read the inputs `names` before everything else.

    A graph that has them among its inputs already stays as it is.
    """
    if not names or set(names) <= set(graph.inputs):
        return graph
    before = "".join(f"{{{name}}}\n\n" for name in names)
    return graph.with_agents(
        lambda agent: replace(agent, prompt=before + agent.prompt), (*graph.inputs, *names)
    )
