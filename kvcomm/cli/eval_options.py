"""The options of `kvcomm eval`, and what they choose: methods, tasks, a graph."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kvcomm.cli import options
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph
    from kvcomm.tasks import Graders, Suite, Task

PAPERS = "full"  # the graph of so many agents, where none is named


@dataclass(frozen=True)
class MethodOptions:
    """Which reuse modes are evaluated."""

    reuse: Annotated[
        str,
        options.option(
            "R[,R...]",
            "auto, exact, kvcomm, dense, or a policy of your own: FILE.py[:NAME].",
            "--reuse",
            "-r",
        ),
    ] = "auto"
    compare: Annotated[
        str | None, options.option("R[,R...]", "Other modes on the same samples, to compare with.")
    ] = None
    gamma: Annotated[
        float | None, options.option("G", "Of kvcomm: the paper's γ, 0 to 1.", shown="0.3")
    ] = None
    anchors: Annotated[
        int | None,
        options.option(
            "V", "Of kvcomm: most anchors of a placeholder.", shown="20", max=options.MOST_TIMES
        ),
    ] = None

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

    data: options.Data = None
    limit: Annotated[int | None, options.option("N", "Only the first N tasks.", shown="all")] = None
    shuffle: Annotated[int | None, options.option("SEED", "Draw the order of the tasks.")] = None
    ids: Annotated[str | None, options.option("A,B", "Only the tasks with these ids.")] = None
    warmup: Annotated[
        int,
        options.option(
            "N",
            "Other tasks that are done first: they teach, and do not count.",
            min=0,
            max=options.MOST_TIMES,
        ),
    ] = 0

    def select(self, tasks: Sequence[Task]) -> dict[str, list[Task]]:
        """`tasks` that are asked for; `warmup`: the first that follow, else those before.

        Raises `UsageError` for an unknown id, for none at all, and where too few are left to warm
        up.
        """
        order = list(tasks)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(order)
        wanted = order if self.ids is None else self._named(tasks, order, self.ids)
        if self.limit is not None:
            if self.limit < 1:
                raise UsageError(f"--limit {self.limit}: at least 1 task is needed")
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

    repeats: Annotated[
        int,
        options.option("N", "Times each task is done (pass@1, pass@N).", max=options.MOST_TIMES),
    ] = 1
    concurrent: Annotated[
        int,
        options.option(
            "N",
            "Tasks under way at once. Times can be compared at 1 only.",
            max=options.MOST_AGENTS,
        ),
    ] = 4
    retries: Annotated[
        int, options.option("N", "Times a task that failed is tried again.", max=options.MOST_TIMES)
    ] = 1
    traces: Annotated[float, options.option("SHARE", "Samples whose traces are kept.")] = 1.0


@dataclass(frozen=True)
class GraphOptions:
    """Which graph works on the suite."""

    graph: Annotated[
        str | None,
        options.option(
            "G",
            "A ready-made graph, or FILE.py[:NAME].",
            "--graph",
            "-g",
            shown="the suite's own team",
        ),
    ] = None
    agents: Annotated[
        str | None,
        options.option(
            "N[,N...]",
            "Agents in a ready-made graph (full, if none is named); several numbers: one "
            "evaluation each.",
            "--agents",
            "-n",
        ),
    ] = None
    folder: Annotated[
        Path | None,
        options.option("DIR", "Text files to retrieve from, instead of the task's passages."),
    ] = None

    def numbers(self) -> list[int | None]:
        """The numbers of agents that are asked for, each once; None is the graph's own.

        Raises `UsageError` for anything that is no number.
        """
        if self.agents is None:
            return [None]
        found: dict[int | None, None] = {}
        for part in split(self.agents, "--agents"):
            if not (part.isascii() and part.isdigit()) or len(part) > 6:
                raise UsageError(f"--agents {part!r}: write a number, or several: 2,3,4")
            found[int(part)] = None
        return list(found)

    def build(
        self,
        suite: Suite,
        tasks: Sequence[Task],
        graders: Graders,
        agents: int | None,
        team: options.TeamOptions,
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
