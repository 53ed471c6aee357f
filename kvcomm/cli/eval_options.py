"""The options of `kvcomm eval`, and what they choose: methods, tasks, a graph."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcomm.cli.home import MODEL
from kvcomm.cli.options import AGENTS, TIMES, Option, TeamOptions, numbers
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph
    from kvcomm.tasks import Graders, Suite, Task

PAPERS = "full"  # the graph of so many agents, where none is named
UP_TO = (0, TIMES[1])
OPTIONS = {
    "model": MODEL,
    "reuse": Option(
        "R[,R...]", "auto, exact, kvcomm, dense, or a policy of your own: FILE.py[:NAME].", "-r"
    ),
    "compare": Option("R[,R...]", "Other modes on the same samples, to compare with."),
    "gamma": Option("G", "Of kvcomm: the paper's γ, 0 to 1.", shown="0.3"),
    "anchors": Option("V", "Of kvcomm: most anchors of a placeholder.", "", "20", TIMES),
    "limit": Option("N", "Only the first N tasks.", "", "all", (1, inf)),
    "shuffle": Option("SEED", "Draw the order of the tasks."),
    "ids": Option("A,B", "Only the tasks with these ids."),
    "warmup": Option(
        "N", "Other tasks that are done first: they teach, and do not count.", within=UP_TO
    ),
    "repeats": Option("N", "Times each task is done (pass@1, pass@N).", within=TIMES),
    "concurrent": Option(
        "N", "Tasks under way at once. Times can be compared at 1 only.", within=AGENTS
    ),
    "retries": Option("N", "Times a task that failed is tried again.", within=UP_TO),
    "traces": Option("SHARE", "Samples whose traces are kept."),
    "graph": Option("G", "A ready-made graph, or FILE.py[:NAME].", "-g", "the suite's own team"),
    "agents": Option(
        "N[,N...]",
        "Agents in a ready-made graph (full, if none is named); several numbers: one evaluation "
        "each.",
        "-n",
    ),
    "folder": Option("DIR", "Text files to retrieve from, instead of the task's passages."),
}


@dataclass(frozen=True)
class MethodOptions:
    """Which reuse modes are evaluated."""

    reuse: str = "auto"
    compare: str | None = None
    gamma: float | None = None
    anchors: int | None = None

    def chosen(self) -> dict[str, Any]:
        """What a `EvalPlan` needs to know: the modes, each once, baselines, own policies, anchors.

        Raises `UsageError` for an unknown mode, where there is nothing to compare, and for numbers
        of anchors where no mode has a use for them.
        """
        from kvcomm.reuse.policy import Anchors
        from kvcomm.tasks.methods import chosen

        against = [] if self.compare is None else split(self.compare, "--compare")
        modes, own = chosen([*split(self.reuse, "--reuse"), *against])
        baselines, _ = chosen(against)
        if baselines and len(modes) == 1:
            raise UsageError(
                f"--compare {self.compare} is the mode of --reuse: compare with another one"
            )
        given = {"gamma": self.gamma, "capacity": self.anchors}
        numbers: dict[str, Any] = {name: n for name, n in given.items() if n is not None}
        if numbers and "kvcomm" not in modes:
            option = "--gamma" if self.gamma is not None else "--anchors"
            raise UsageError(f"{option} belongs to the mode kvcomm: add --reuse kvcomm")
        return {"modes": modes, "baselines": baselines, "own": own, "anchors": Anchors(**numbers)}


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks of the suite are done."""

    data: Path | None = None
    limit: int | None = None
    shuffle: int | None = None
    ids: str | None = None
    warmup: int = 0

    def select(self, tasks: Sequence[Task]) -> dict[str, list[Task]]:
        """`tasks` that are asked for; `warmup`: the first that follow, else those before.

        Raises `UsageError` for an unknown id, for none at all, and where too few are left to warm
        up.
        """
        order = list(tasks)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(order)
        wanted = order if self.ids is None else self._named(tasks, order, self.ids)
        wanted = wanted[: self.limit]
        counted = {task.id for task in wanted}
        end = 1 + max(place for place, task in enumerate(order) if task.id in counted)
        others = [task for task in (*order[end:], *order[:end]) if task.id not in counted]
        if self.warmup > len(others):
            raise UsageError(
                f"--warmup {self.warmup}: beside the {len(wanted):,} tasks that count there are "
                f"{len(others):,}: lower --limit or --warmup"
            )
        return {"tasks": wanted, "warmup": others[: self.warmup]}

    def _named(self, tasks: Sequence[Task], order: Sequence[Task], ids: str) -> list[Task]:
        """The tasks with these ids, in the order of the ids, or as they were shuffled."""
        names = dict.fromkeys(name.strip() for name in ids.split(","))
        known = {task.id: task for task in order}
        if unknown := [name for name in names if name not in known]:
            some = ", ".join(task.id for task in tasks[:3])
            raise UsageError(f"--ids: there is no task {unknown[0]!r}; ids are such as {some}")
        if self.shuffle is not None:
            return [task for task in order if task.id in names]
        return [known[name] for name in names]


@dataclass(frozen=True)
class EffortOptions:
    """How often and how many at once, as a `EvalPlan` names them."""

    repeats: int = 1
    concurrent: int = 4
    retries: int = 1
    traces: float = 1.0


@dataclass(frozen=True)
class GraphOptions:
    """Which graph works on the suite."""

    graph: str | None = None
    agents: str | None = None
    folder: Path | None = None

    def numbers(self) -> list[int | None]:
        """The numbers of agents that are asked for, each once; None is the graph's own."""
        return [None] if self.agents is None else [*numbers("--agents", self.agents)]

    def build(
        self,
        suite: Suite,
        tasks: Sequence[Task],
        graders: Graders,
        agents: int | None,
        team: TeamOptions,
    ) -> AgentGraph:
        """The suite's team, or the graph that is asked for, which reads what the suite brings.

        A number of agents without a graph is the paper's graph, fully connected.
        """
        from kvcomm.cli.topologies import adjusted, build_graph, with_passages
        from kvcomm.own_file import is_own_file
        from kvcomm.tasks.teams import rag_team

        change = (team.max_tokens, team.temperature, team.layout)
        if team.rounds is not None and self.graph is None:
            raise UsageError("--rounds belongs to a ready-made graph: name one with --graph")
        if self.folder is not None:
            if self.graph is not None or agents is not None:
                raise UsageError(
                    "--folder belongs to the team with a retriever: leave --graph out, and --agents"
                )
            return adjusted(rag_team(graders, folder=self.folder), *change)
        if self.graph is None and agents is None:
            return adjusted(suite.team(graders), *change)
        name = self.graph or PAPERS
        inputs = suite.inputs
        if not inputs and not is_own_file(name) and any(task.corpus for task in tasks):
            inputs = ("corpus",)
        return with_passages(build_graph(name, agents=agents, **vars(team)), inputs)


def split(value: str, option: str) -> list[str]:
    """The parts of a list with commas. Raises `UsageError` for an empty one."""
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise UsageError(f"{option} {value!r}: a name is missing between the commas")
    return parts
