"""`kvcomm models list|check|fetch`: which models there are, and whether their KV can be reused."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from kvcomm.cli import options
from kvcomm.cli.output import complain, console, print_json, print_table
from kvcomm.trace.tables import facts

if TYPE_CHECKING:
    from kvcomm.engine.models import Check

app = typer.Typer(no_args_is_help=True, help="Look at models.")


@app.command("list")
@options.takes()
def list_models(*, json: bool = False) -> None:
    """The models that have a name here; any folder or hub id works as well."""
    from kvcomm.engine import models

    infos = models.list_models()
    if json:
        print_json({"models": [{**asdict(info), "where": str(info.where)} for info in infos]})
        return
    rows = ((i.name, i.kind, "yes" if i.ready else "no", str(i.where)) for i in infos)
    print_table(("model", "kind", "ready", "~where"), rows)


@app.command("check")
@options.takes(
    context=options.Option("N", "Size up prompts of N tokens.", within=options.TOKENS),
    agents=options.Option("A", "Agents, with --context.", "-n", within=options.AGENTS),
)
def check(
    model: str,
    *,
    context: int | None = None,
    agents: int = 5,
    device: str | None = None,
    dtype: str | None = None,
    json: bool = False,
) -> None:
    """Load a model and check that its KV can be moved and reused; exit 1 when it cannot."""
    from kvcomm.engine.load import check_model

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
@options.takes()
def fetch(model: str) -> None:
    """Prepare a model in the user's cache; a second time does nothing."""
    from kvcomm.engine import models

    complain(f"{model} is ready in {models.fetch_model(model)}")


# Bytes for agents whose texts (the task and a message of each of them) make up a prompt.
SIZES = {
    "rows": "rows, all open",
    "base": "base KV of every text, once",
    "offsets": "linear offsets, two kinds of text an agent",
    "paper_pool": "the paper's pools, 20 anchors each",
}


def _sizes(report: Check, context: int, agents: int) -> dict[str, int]:
    row, offsets = context * report.kv_bytes_per_token, 2 * agents * report.offset_bytes
    return dict(zip(SIZES, (agents * row, row, offsets, agents * 20 * 2 * row), strict=True))


def _print(report: Check, sizes: dict[str, int] | None) -> None:
    rows = [
        ("model", report.model),
        ("reuse", f"yes: {report.reason}" if report.reuse_ok else f"refused: {report.reason}"),
        ("attention", report.attention),
        ("layers", f"{report.layers}"),
        ("context", f"{report.context:,} tokens"),
        ("KV", f"{report.kv_bytes_per_token:,} bytes a token"),
        *((name.replace("_", " "), f"{value:.3g}") for name, value in report.measured.items()),
        *((SIZES[name], f"{value / 1e6:,.0f} MB") for name, value in (sizes or {}).items()),
    ]
    console().print(facts(rows))
