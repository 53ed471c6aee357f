"""The typer app: all commands, and one way to end them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvcomm.cli import bench, demo, eval, graph, models, run, tasks, trace
from kvcomm.cli.output import complain
from kvcomm.errors import KvcommError


class Reporting(TyperGroup):
    """Ends a command that failed with one line and the error's exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; 130 is what shells expect after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KvcommError as error:
            complain(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Reporting,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.add_typer(eval.app, name="eval")
app.add_typer(tasks.app, name="tasks")
app.add_typer(bench.app, name="bench")
app.add_typer(graph.app, name="graph")
app.add_typer(trace.app, name="trace")
app.add_typer(models.app, name="models")


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
