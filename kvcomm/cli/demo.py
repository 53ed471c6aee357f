"""`kvcomm demo`: three agents answer questions about long texts, in every reuse mode."""

from __future__ import annotations

from contextlib import ExitStack
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from kvcomm.cli import options
from kvcomm.cli.audits import noticed
from kvcomm.cli.options import Option
from kvcomm.cli.output import complain, console, print_json, say
from kvcomm.cli.progress import Counted
from kvcomm.trace.record import new_run_folder
from kvcomm.trace.text import seconds

if TYPE_CHECKING:
    from kvcomm.cli.demo_report import Played
    from kvcomm.engine.base import Engine

MODES = ("dense", "exact", "kvcomm", "auto")


@options.takes(
    out=Option("DIR", "Where the runs go.", shown="runs/TIME-demo"),
    limit=Option("N", "Only the first N questions.", within=(1, inf)),
)
def demo(
    *,
    out: Path | None = None,
    limit: int | None = None,
    model: options.ModelOptions,
    json: bool = False,
) -> None:
    """Let three agents answer questions about long texts in every reuse mode, and compare."""
    from kvcomm.cli import demo_report
    from kvcomm.cli.demo_team import QUESTIONS, team
    from kvcomm.engine.load import load_engine
    from kvcomm.engine.models import hardware

    played = demo_report.Played(team(), QUESTIONS[:limit], {mode: [] for mode in MODES})
    folder = new_run_folder("demo", out)
    complain(f"loading {model.model}")
    with load_engine(model.model, device=model.device, dtype=model.dtype) as engine:
        if not json:
            texts = {q.source: len(engine.codec.encode(q.passage)) for q in played.questions}
            console().print(demo_report.show_plan(played, model.model, hardware(engine), texts))
        play(engine, played, folder, show=not json)
    if json:
        graphs = {played.graph.name: demo_report.to_json(played)}
        print_json({"model": model.model, "graphs": graphs, "out": str(folder)})
    else:
        console().print(demo_report.show_table(played))
        last = folder / played.questions[-1].id
        say(f"\ntraces: {folder}\none of them: kvcomm trace show {last}-auto")


def play(engine: Engine, played: Played, folder: Path, show: bool) -> None:
    """Ask every question in every mode, one session a mode; `show` prints each as it is done.

    Modes take turns question by question, and the one that begins changes, so that the noise of
    the machine favours none of them. Each has a namespace of its own and no saved state, so that
    none finds what another, or an earlier demo, has computed or learned.
    """
    from kvcomm.cli.demo_report import show_question
    from kvcomm.session import Session

    modes = tuple(played.results)
    with ExitStack() as stack:
        sessions = {
            mode: stack.enter_context(
                Session(engine, reuse=mode, state=None, runs=folder, namespace=mode)
            )
            for mode in modes
        }
        done, total = 0, len(played.questions) * len(modes)
        progress = Counted("demo", total)
        for index, question in enumerate(played.questions):
            turn = index % len(modes)
            with progress:
                for mode in (*modes[turn:], *modes[:turn]):
                    session, what = sessions[mode], f"{question.id}, {mode}"
                    progress.show(f"demo: {what}", done)
                    out = folder / f"{question.id}-{mode}"
                    result = session.run(
                        played.graph, out=out, text=question.passage, question=question.text
                    )
                    # Its audits are in nobody's time: not in its own, and not in the next run's.
                    with noticed(session):
                        session.drain()
                    played.results[mode].append(result)
                    done += 1
                    line = f"demo {done}/{total}  {what}: {seconds(result.totals.wall_s)}"
                    progress.show(f"demo: {what}", done, line)
            if show:
                console().print(show_question(played, index))
