"""A timeline in characters: when every call waited, worked ahead, prefilled and decoded."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kvcomm.trace.events import CallFinished
from kvcomm.trace.run import TimelineBar, TraceRun
from kvcomm.trace.text import number, seconds

MARKS = {"waits": "·", "ahead": "░", "prefill": "▓", "decode": "█", "tool": "▒"}
LEGEND = "· waits  ░ fills its row ahead  ▓ prefills  █ decodes"
# A name may take so much of a line.
NAME = 16
MOST = 500


class Timeline:
    """One line a call: its bar over the run's seconds, and its time to first token.

    As wide as the terminal; the characters say everything without colour.
    """

    def __init__(self, run: TraceRun) -> None:
        self._bars = sorted(run.bars, key=lambda bar: (bar.parts[0][0], bar.name))
        self._tools = bool(run.tools)
        self._end = max((bar.parts[-1][1] for bar in self._bars), default=0.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(max((len(bar.name) for bar in self._bars), default=0), NAME)
        room = max(options.max_width - width - 12, 10)
        for bar in self._bars[:MOST]:
            name = bar.name if len(bar.name) <= width else bar.name[: width - 1] + "…"
            line = f" {name:<{width}} {self._draw(bar, room):<{room}} {_note(bar):>8}"
            yield Text(line, no_wrap=True)
        if len(self._bars) > MOST:
            yield Text(f" and {len(self._bars) - MOST:,} more", style="dim")
        scale = f"{'0':<{room // 2}}{seconds(self._end):>{room - room // 2}}"
        yield Text(f" {'':<{width}} {scale} {'TTFT s':>8}", style="dim", no_wrap=True)
        marks = LEGEND + (f"  {MARKS['tool']} a tool" if self._tools else "")
        yield Text(f" {marks}", style="dim")

    def _draw(self, bar: TimelineBar, room: int) -> str:
        """Every part that takes any time has a character at least."""
        cells = [" "] * room
        drawn = 0
        for begin, end, part in bar.parts:
            if end <= begin:
                continue
            first = min(max(self._column(begin, room), drawn), room - 1)
            drawn = min(max(self._column(end, room), first + 1), room)
            cells[first:drawn] = [MARKS[part]] * (drawn - first)
        return "".join(cells).rstrip()

    def _column(self, at: float, room: int) -> int:
        """Where a moment is drawn; the edge for one outside the run."""
        return round(min(max(at / self._end, 0.0), 1.0) * room) if self._end > 0 else 0


def _note(bar: TimelineBar) -> str:
    if bar.view is None:
        return ""
    return number(bar.view.call.ttft_s) if bar.view.call else "cut"


def slowest(run: TraceRun, count: int = 3) -> list[str]:
    """The calls that took longest from their last input to their last token, and what for."""
    ranked = sorted(run.done, key=lambda call: call.ready_at - call.finished_at)[:count]
    return [
        f"{call.node}: {seconds(call.finished_at - call.ready_at)}, of which "
        f"{seconds(call.ttft_s)} to the first token ({_phases(call)}) and "
        f"{seconds(call.decode_s)} for {call.output_tokens:,} tokens"
        for call in ranked
    ]


def _phases(call: CallFinished) -> str:
    spent = sorted((-value, name) for name, value in call.phases.items() if name != "decode")
    return (
        ", ".join(f"{name} {seconds(-value)}" for value, name in spent[:2]) or "no phases recorded"
    )
