"""From the options of `kvcomm eval` to plans: which modes, tasks, and graphs of how many agents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph
    from kvcomm.reuse.policy import Anchors
    from kvcomm.tasks import Graders, Suite, Task
    from kvcomm.tasks.methods import OwnPolicy

PAPERS = "full"  # the graph of so many agents, where none is named


def modes_of(reuse: str, compare: str | None) -> tuple[list[str], list[str], dict[str, OwnPolicy]]:
    """The modes of both options, each once; those of `--compare`; and a user's own policies.

    Raises `UsageError` for an unknown mode, and where there is nothing to compare.
    """
    from kvcomm.tasks.methods import chosen

    asked = split(reuse, "--reuse")
    against = [] if compare is None else split(compare, "--compare")
    modes, own = chosen([*asked, *against])
    baselines, _ = chosen(against)
    if baselines and len(modes) == 1:
        raise UsageError(f"--compare {compare} is the mode of --reuse: compare with another one")
    return modes, baselines, own


def split(value: str, option: str) -> list[str]:
    """The parts of a list with commas. Raises `UsageError` for an empty one."""
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise UsageError(f"{option} {value!r}: a name is missing between the commas")
    return parts


def anchors_of(gamma: float | None, anchors: int | None, modes: Sequence[str]) -> Anchors:
    """γ and V for the mode `kvcomm`. Raises `UsageError` where no mode has a use for them."""
    from kvcomm.reuse.policy import Anchors

    given = {"gamma": gamma, "capacity": anchors}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if fields and "kvcomm" not in modes:
        option = "--gamma" if gamma is not None else "--anchors"
        raise UsageError(f"{option} belongs to the mode kvcomm: add --reuse kvcomm")
    return Anchors(**fields)


def numbers_of(agents: str | None) -> list[int | None]:
    """The numbers of agents that are asked for, each once; None is the graph's own.

    Raises `UsageError` for anything that is no number.
    """
    if agents is None:
        return [None]
    found: dict[int | None, None] = {}
    for part in split(agents, "--agents"):
        if not (part.isascii() and part.isdigit()) or len(part) > 6:
            raise UsageError(f"--agents {part!r}: write a number, or several: 2,3,4")
        found[int(part)] = None
    return list(found)


def select(
    tasks: Sequence[Task],
    limit: int | None,
    shuffle: int | None,
    ids: str | None,
    warmup: int = 0,
) -> tuple[list[Task], list[Task]]:
    """The tasks that are asked for, and `warmup` others: the first that follow, else those before.

    Raises `UsageError` for an unknown id, for none at all, and where too few are left to warm up.
    """
    order = list(tasks)
    if shuffle is not None:
        random.Random(shuffle).shuffle(order)
    wanted = order if ids is None else _named(order, tasks, ids, shuffled=shuffle is not None)
    if limit is not None:
        if limit < 1:
            raise UsageError(f"--limit {limit}: at least 1 task is needed")
        wanted = wanted[:limit]
    counted = {task.id for task in wanted}
    end = 1 + max(place for place, task in enumerate(order) if task.id in counted)
    others = [task for task in (*order[end:], *order[:end]) if task.id not in counted]
    if warmup > len(others):
        raise UsageError(
            f"--warmup {warmup}: beside the {len(wanted):,} tasks that count there are "
            f"{len(others):,}: lower --limit or --warmup"
        )
    return wanted, others[: max(warmup, 0)]


def _named(order: Sequence[Task], tasks: Sequence[Task], ids: str, *, shuffled: bool) -> list[Task]:
    """The tasks with these ids, in the order of the ids, or as they were shuffled."""
    names = dict.fromkeys(name.strip() for name in ids.split(","))
    known = {task.id: task for task in tasks}
    if unknown := [name for name in names if name not in known]:
        some = ", ".join(list(known)[:3])
        raise UsageError(f"--ids: there is no task {unknown[0]!r}; ids are such as {some}")
    if shuffled:
        return [task for task in order if task.id in names]
    return [known[name] for name in names]


def team_of(
    suite: Suite,
    tasks: Sequence[Task],
    graders: Graders,
    graph: str | None,
    folder: Path | None,
    **change: Any,
) -> AgentGraph:
    """The suite's team, or the graph that is asked for, which reads what the suite brings.

    A number of agents without a graph is the paper's graph, fully connected.
    """
    from kvcomm.cli.topologies import adjusted, build_graph, with_passages
    from kvcomm.own_file import is_own_file
    from kvcomm.tasks.teams import rag_team

    adjustments = {name: change[name] for name in ("max_tokens", "temperature", "layout")}
    if change["rounds"] is not None and graph is None:
        raise UsageError("--rounds belongs to a ready-made graph: name one with --graph")
    if folder is not None:
        if graph is not None or change["agents"] is not None:
            raise UsageError(
                "--folder belongs to the team with a retriever: leave --graph out, and --agents"
            )
        return adjusted(rag_team(graders, folder=folder), **adjustments)
    if graph is None and change["agents"] is not None:
        graph = PAPERS
    if graph is None:
        return adjusted(suite.team(graders), **adjustments)
    inputs = suite.inputs
    if not inputs and not is_own_file(graph) and any(task.corpus for task in tasks):
        inputs = ("corpus",)
    return with_passages(build_graph(graph, **change), inputs)
