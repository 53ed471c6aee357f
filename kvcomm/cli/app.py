"""The typer app: all commands, and one way to end them."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvcomm.cli import bench, cache, demo, eval, graph, index, models, run, state, tasks, trace
from kvcomm.cli.output import complain
from kvcomm.errors import KvcommError


class Terminated(KeyboardInterrupt):
    """A signal asked the program to end: it does as after Ctrl-C, with another exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: traces closed, what was learned saved.

    A signal that is ignored (`nohup`) stays ignored.
    """

    def end(number: int, _: object) -> None:
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may say what signals do
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


class Notices(logging.Handler):
    """What the library has to say while it works, on stderr.

    What it logs of single runs is left out: commands show their runs themselves.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this is not about a single run."""
        return record.name != "kvcomm.run"

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def show_notices() -> None:
    """Show what the library logs. A program that imports it decides by itself."""
    log = logging.getLogger("kvcomm")
    if not any(isinstance(handler, Notices) for handler in log.handlers):
        log.addHandler(Notices(logging.INFO))
        log.setLevel(logging.INFO)


class Reporting(TyperGroup):
    """Ends a command that failed with one line and the error's exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; 130 is what shells expect after Ctrl-C."""
        show_notices()
        try:
            return super().invoke(ctx)
        except KvcommError as error:
            complain(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            complain("terminated" if isinstance(error, Terminated) else "interrupted")
            raise typer.Exit(getattr(error, "exit_code", 130)) from None


app = typer.Typer(
    cls=Reporting,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", cls=run.RunCommand)(run.run)
app.command("demo")(demo.demo)
app.command("index")(index.index)
for group in (eval, tasks, bench, graph, trace, models, state, cache):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


def _version(wanted: bool) -> None:
    if wanted:
        from kvcomm import __version__

        typer.echo(f"kvcomm {__version__}")
        raise typer.Exit


@app.callback()
def kvcomm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Multi-agent LLM systems whose agents hand each other text and the KV cache behind it."""
