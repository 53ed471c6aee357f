"""The command line: `kvcomm COMMAND`, one file a group of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `kvcomm` command; ends with `SystemExit`."""
    from kvcomm.cli.app import app, end_on_signals

    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    end_on_signals()
    app(args=list(argv) if argv is not None else None, prog_name="kvcomm")
