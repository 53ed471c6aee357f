"""`kvcomm demo`: small questions, two graphs, every reuse mode, and what each of them cost."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcomm.cli import options
from kvcomm.cli.output import complain, console, print_json, say
from kvcomm.cli.progress import Counted
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.cli.demo_report import Played
    from kvcomm.engine.base import Engine
    from kvcomm.graphs import AgentGraph
    from kvcomm.tasks import Task

MAX_TOKENS = 24
MODES = {"chain": ("dense", "exact", "kvcomm"), "debate": ("dense", "exact")}


def demo(
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the runs go.", show_default="runs/TIME-demo"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the first N questions.", show_default=False),
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Let three agents, then a debate, answer small questions in every reuse mode, and compare."""
    from kvcomm.cli import demo_report
    from kvcomm.cli.topologies import build_graph
    from kvcomm.tasks import DATA, load_suite
    from kvcomm.trace.record import new_run_folder

    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: the demo needs at least 1 question")
    tasks = load_suite(str(DATA / "demo.jsonl"))[1][:limit]
    graphs = {name: build_graph(name, max_tokens=MAX_TOKENS) for name in MODES}
    folder = new_run_folder("demo", out)

    from kvcomm.engine.models import load_engine

    complain(f"loading {model}")
    played: list[Played] = []
    with load_engine(model, device=device, dtype=dtype) as engine:
        for name, graph in graphs.items():
            played.append(play(engine, graph, MODES[name], tasks, folder, show=not json))
    if json:
        print_json(
            {
                "model": model,
                "graphs": {p.graph.name: demo_report.to_json(p) for p in played},
                "out": str(folder),
            }
        )
        return
    for one in played:
        console().print(demo_report.show_table(one))
    console().print(f"\n{demo_report.LEGEND}")
    say(f"\ntraces: kvcomm trace list --runs {folder}")


def play(
    engine: Engine,
    graph: AgentGraph,
    modes: tuple[str, ...],
    tasks: list[Task],
    folder: Path,
    show: bool,
) -> Played:
    """Run every task in every mode, one session a mode; `show` prints the first task's messages.

    Modes take turns question by question, and the one that begins changes, so that the noise of
    the machine favours none of them. Each has a namespace of its own, so that none finds what
    another has computed.
    """
    from kvcomm.cli.demo_report import Played, show_question
    from kvcomm.runtime.session import Session

    played = Played(graph, tasks, {mode: [] for mode in modes})
    with ExitStack() as stack:
        sessions = {
            mode: stack.enter_context(
                Session(
                    engine,
                    reuse=mode,
                    state=None,
                    runs=folder,
                    namespace=f"{graph.name}-{mode}",
                )
            )
            for mode in modes
        }
        steps = Steps(graph.name, len(tasks) * len(modes))
        for index, task in enumerate(tasks):
            turn = index % len(modes)
            with steps:
                for mode in (*modes[turn:], *modes[:turn]):
                    steps.begin(f"{task.id}, {mode}")
                    run_folder = folder / f"{graph.name}-{task.id}-{mode}"
                    result = sessions[mode].run(graph, task=task.input, out=run_folder)
                    played.results[mode].append(result)
                    steps.end(result.totals.wall_s)
            # A mode that learns has nothing to go by at first: show what it came to as well.
            learned = "kvcomm" in modes and task is tasks[-1]
            if show and (index == 0 or learned):
                console().print(show_question(played, index))
    return played


class Steps(Counted):
    """Progress through a number of runs; as a context it shows a bar, where there is a terminal."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done, self._what = title, total, 0, ""
        super().__init__(title, total)

    def begin(self, what: str) -> None:
        """A run begins."""
        self._what = what
        if self._bar:
            self._bar.update(self._task, description=f"{self._title}: {what}")

    def end(self, took_s: float) -> None:
        """It ended."""
        from kvcomm.trace.text import seconds

        self._done += 1
        if self._bar:
            self._bar.advance(self._task)
        else:
            count = f"{self._done:>{len(str(self._total))}}/{self._total}"
            complain(f"{self._title} {count}  {self._what}: {seconds(took_s)}")
