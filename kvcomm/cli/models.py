"""`kvcomm models list|check|fetch`: which models there are, and whether their KV can be reused."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kvcomm.cli import options
from kvcomm.cli.output import complain, console, print_json, print_table
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.engine.models import Check

app = typer.Typer(no_args_is_help=True, help="Look at models.")
Name = Annotated[
    str, typer.Argument(metavar="M", help="An alias, a folder, a hub id, or random:SHAPE.")
]


@app.command("list")
def list_models(json: options.Json = False) -> None:
    """The models that have a name here; any folder or hub id works as well."""
    from kvcomm.engine import models

    infos = models.list_models()
    if json:
        print_json({"models": [{**asdict(info), "where": str(info.where)} for info in infos]})
        return
    print_table(
        ("model", "kind", "ready", "~where"),
        ((i.name, i.kind, "yes" if i.ready else "no", str(i.where)) for i in infos),
    )


@app.command("check")
def check(
    model: Name,
    context: Annotated[
        int | None, options.option("N", "Size up prompts of N tokens.", max=options.MOST_TOKENS)
    ] = None,
    agents: Annotated[
        int,
        options.option("A", "Agents, with --context.", "--agents", "-n", max=options.MOST_AGENTS),
    ] = 5,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Load a model and check that its KV can be moved and reused; exit 1 when it cannot."""
    from kvcomm.engine.load import check_model

    if context is not None and min(context, agents) < 1:
        raise UsageError("--context and --agents need 1 at least")
    complain(f"loading {model}")
    report = check_model(model, device=device, dtype=dtype)
    sizes = _sizes(report, context, agents) if context is not None else None
    if json:
        print_json(asdict(report) | ({"bytes": sizes} if sizes else {}))
    else:
        _print(report, sizes)
    if not report.reuse_ok:
        raise typer.Exit(1)


@app.command("fetch")
def fetch(model: Name) -> None:
    """Prepare a model in the user's cache; a second time does nothing."""
    from kvcomm.engine import models

    complain(f"{model} is ready in {models.fetch_model(model)}")


def _sizes(report: Check, context: int, agents: int) -> dict[str, int]:
    """Bytes for `agents` prompts of `context` tokens, whose texts (the task and a message of each
    agent) make up a prompt: as `MEANING` says."""
    row = context * report.kv_bytes_per_token
    offsets = 2 * agents * report.offset_bytes
    return dict(zip(MEANING, (agents * row, row, offsets, agents * 20 * 2 * row), strict=True))


MEANING = {
    "rows": "rows, all open",
    "base": "base KV of every text, once",
    "offsets": "linear offsets, two kinds of text an agent",
    "paper_pool": "the paper's pools, 20 anchors each",
}


def _print(report: Check, sizes: dict[str, int] | None) -> None:
    from kvcomm.trace.tables import facts

    rows = [
        ("model", report.model),
        ("reuse", f"yes: {report.reason}" if report.reuse_ok else f"refused: {report.reason}"),
        ("attention", report.attention),
        ("layers", f"{report.layers}"),
        ("context", f"{report.context:,} tokens"),
        ("KV", f"{report.kv_bytes_per_token:,} bytes a token"),
        *((name.replace("_", " "), f"{value:.3g}") for name, value in report.measured.items()),
        *((MEANING[name], f"{value / 1e6:,.0f} MB") for name, value in (sizes or {}).items()),
    ]
    console().print(facts(rows))
