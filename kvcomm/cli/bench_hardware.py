"""`kvcomm bench hardware`: what this machine can do with a model, for `kvcomm plan`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcomm.cli import options
from kvcomm.cli.loading import reusing
from kvcomm.cli.output import complain, print_json
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.runtime.hardware import Measured


def hardware(
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Write it there.", show_default="stdout"),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Medians of N rounds.")] = 3,
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = None,
    dtype: options.Dtype = None,
    memory: options.Memory = None,
    json: options.Json = False,
) -> None:
    """Measure prefill and decoding of a model on this machine, for `kvcomm plan --hardware`."""
    from kvcomm.runtime.hardware import Measured

    if samples < 1:
        raise UsageError("--samples needs 1 at least")
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {str(out)!r}: there is no folder {out.parent}/")
    with reusing(model, device, dtype, options.size(memory)) as engine:
        bench = Measured(engine, on_step=complain)
        asyncio.run(_rounds(bench, samples))
        found = bench.result()
    if out is not None:
        out.write_text(found.to_toml(), encoding="utf-8")
        complain(f"written: {out}")
    if json:
        print_json(found.model_dump(mode="json"))
    elif out is None:
        print(found.to_toml(), end="")


async def _rounds(bench: Measured, samples: int) -> None:
    for _ in range(samples):
        await bench.round()
