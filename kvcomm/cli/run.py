"""`kvcomm run`: a graph of agents answers one question."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from kvcomm.cli import options
from kvcomm.cli.audits import finish
from kvcomm.cli.home import MODEL, Home
from kvcomm.cli.options import Option
from kvcomm.cli.output import complain, console, print_json, say
from kvcomm.cli.progress import RunProgress
from kvcomm.errors import KvcommError, UsageError
from kvcomm.message import well_formed
from kvcomm.trace.read import find_run
from kvcomm.trace.run import CallView
from kvcomm.trace.show import tokens
from kvcomm.trace.show_calls import CallTable
from kvcomm.trace.text import seconds

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph
    from kvcomm.runtime.result import Result
    from kvcomm.runtime.stream_events import StreamEvent

# No option looks like this: a digit or a blank behind the dash, or several words.
QUESTION = re.compile(r"-[^A-Za-z-]|-\S*\s")


class RunCommand(TyperCommand):
    """Says what to type when a question was taken for an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, or an error that names `--`."""
        given = list(args)
        try:
            return list(super().parse_args(ctx, args))
        except Exception as error:
            asked = [arg for arg in given if QUESTION.match(arg)]
            if asked and "--" not in given and isinstance(getattr(error, "message", None), str):
                hint = f'use -- before a question that begins with -: kvcomm run -- "{asked[0]}"'
                error.message = f"{error.message} ({hint})"  # type: ignore[attr-defined]
            raise


@options.takes(
    question=Option("QUESTION", "The task of the agents."),
    state=Option("DIR|none", "Where learned offsets are kept.", shown="the user's cache"),
    replay=Option("RUN", "Use the plans of this run's trace again."),
    out=Option(
        "DIR", "The run folder. Without one, the newest 100 runs are kept.", "", "runs/TIME-GRAPH"
    ),
    extra=Option("NAME=TEXT", "Another input of the graph; may be repeated.", "--input"),
    model=MODEL,
)
def run(
    question: str,
    *,
    graph: str = "chain",
    agents: int | None = None,
    team: options.TeamOptions,
    home: Home,
    reuse: str = "auto",
    auto: options.AutoOptions,
    state: Path | None = None,
    replay: str | None = None,
    out: Path | None = None,
    extra: list[str] | None = None,
    json: bool = False,
) -> None:
    """Answer QUESTION with a graph of agents, and say what each call reused."""
    from kvcomm.cli.topologies import build_graph
    from kvcomm.reuse.policy import policy_for
    from kvcomm.session import Session

    if not question.strip():
        raise UsageError('the task is empty: write it in quotes, kvcomm run "What is 6 * 7?"')
    policy_for(reuse)
    built = build_graph(graph, agents=agents, **vars(team))
    inputs = _inputs(built, question, extra or [])
    quality = auto.quality()
    trace = None if replay is None else find_run(replay)

    progress = RunProgress()
    with (
        home.load(keeps=state != Path("none")) as loaded,
        Session(
            loaded,
            reuse=reuse,
            seed=team.seed,
            state=None if state == Path("none") else state or "default",
            runs=options.RUNS,
            listeners=(progress,),
            **quality,
        ) as session,
    ):
        with progress:
            result = _last(session.stream(built, out=out, replay=trace, **inputs))
        for warning in result.warnings:
            complain(f"warning: {warning}")
        if json:
            print_json(result.to_json())
        else:
            _print(result)
        finish(session)


def _last(stream: Iterator[StreamEvent | Result]) -> Result:
    """The result at the end of a stream; where none comes, stderr says where the trace is."""
    from kvcomm.runtime.result import Result
    from kvcomm.runtime.stream_events import RunStart

    folder: Path | None = None
    try:
        for item in stream:
            if isinstance(item, RunStart):
                folder = item.folder
            elif isinstance(item, Result):
                return item
    except (KvcommError, KeyboardInterrupt):
        if folder is not None:
            complain(f"its trace: kvcomm trace show {folder}")
        raise
    raise AssertionError("a stream ends with a result or an error")


def _inputs(graph: AgentGraph, question: str, extra: list[str]) -> dict[str, Any]:
    """The graph's inputs by name: QUESTION is `task`, `--input` brings the others."""
    inputs: dict[str, Any] = {"task": well_formed(question)}
    for item in extra:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UsageError(f"--input {item!r}: write NAME=TEXT")
        inputs[name] = well_formed(text)
    for name in graph.inputs:
        if name not in inputs:
            raise UsageError(f"the graph has an input `{name}`: add --input {name}=TEXT")
    if unknown := [name for name in inputs if name not in graph.inputs]:
        known = ", ".join(graph.inputs)
        raise UsageError(f"the graph has no input `{unknown[0]}`: its inputs are {known}")
    return inputs


def _print(result: Result) -> None:
    views = [CallView(c.node, c.report.attempt, c.steps, c.message, c.report) for c in result.calls]
    ahead = sum(call.total("ahead") for call in result.calls)
    spent = f"\n{tokens(result.totals, ahead)}, {seconds(result.totals.wall_s)} in all"
    say(f"{result.answer}\n")
    console().print(CallTable(views), spent, sep="\n")
    if result.trace.path:
        say(f"trace: kvcomm trace show {result.trace.path}")
