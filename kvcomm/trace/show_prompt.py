"""A prompt as text: segment by segment, marked by where the tokens came from."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from kvcomm.trace.events import SegmentStep
from kvcomm.trace.read import TraceRun
from kvcomm.trace.text import plain

# One colour for every source of a token; the words beside them say the same.
COLOURS = {"computed": "yellow", "prefix": "green", "realigned": "cyan"}


def show_prompt(run: TraceRun, steps: Sequence[SegmentStep]) -> RenderableType:
    """The text under each segment's sources, in the colour of most of its tokens.

    Nothing is left out: `↵` stands where the prompt has a line break.
    """
    parts: list[RenderableType] = []
    for step in steps:
        text = run.text(step)
        if text is None:
            return Text("this trace holds no texts of prompts", style="dim")
        body = plain(text).replace("\n", "↵\n").removesuffix("\n")
        parts.append(Text.assemble((step.label, "bold"), "  ", sources(step)))
        parts.append(Padding(Text(body, COLOURS[step.source]), (0, 0, 0, 2), expand=False))
    return Group(*parts)


def sources(step: SegmentStep) -> str:
    """`1 computed, 23 realigned (24 ahead)`."""
    counts = ((getattr(step, name), name) for name in COLOURS)
    ahead = f" ({step.ahead:,} ahead)" if step.ahead else ""
    return ", ".join(f"{count:,} {name}" for count, name in counts if count) + ahead
