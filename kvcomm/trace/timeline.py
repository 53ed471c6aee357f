"""A timeline in characters: when every call waited, worked ahead, prefilled and decoded."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kvcomm.trace.events import CallFinished, ToolFinished
from kvcomm.trace.read import TraceRun
from kvcomm.trace.text import number, seconds

WAITS, AHEAD, PREFILL, DECODE, TOOL = MARKS = "·░▓█▒"
LEGEND = f"{WAITS} waits  {AHEAD} fills its row ahead  {PREFILL} prefills  {DECODE} decodes"
# A name may take so much of a line.
NAME = 16
# As many lines as a reader looks through.
MOST = 500


class Timeline:
    """One line a call: its bar over the run's seconds, and its time to first token.

    As wide as the terminal; the characters say everything without colour.
    """

    def __init__(self, run: TraceRun) -> None:
        self._calls = [(v, moments) for v in run.calls if (moments := v.moments) is not None]
        self._tools = run.tools
        ends = [moments[-1] for _, moments in self._calls]
        self._end = max([*ends, *(tool.finished_at for tool in run.tools)], default=0.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [view.title for view, _ in self._calls] + [tool.node for tool in self._tools]
        width = min(max(map(len, names), default=0), NAME)
        room = max(options.max_width - width - 12, 10)
        lines = sorted(self._lines(room))
        for _, name, bar, note in lines[:MOST]:
            shown = name if len(name) <= width else name[: width - 1] + "…"
            yield Text(f" {shown:<{width}} {bar:<{room}} {note:>8}", no_wrap=True)
        if len(lines) > MOST:
            yield Text(f" and {len(lines) - MOST:,} more", style="dim")
        scale = f"{'0':<{room // 2}}{seconds(self._end):>{room - room // 2}}"
        yield Text(f" {'':<{width}} {scale} {'TTFT s':>8}", style="dim", no_wrap=True)
        marks = LEGEND + (f"  {TOOL} a tool" if self._tools else "")
        yield Text(f" {marks}", style="dim")

    def _lines(self, room: int) -> Sequence[tuple[float, str, str, str]]:
        lines = [
            (
                moments[0],
                view.title,
                self._draw(tuple(zip(moments, moments[1:], MARKS, strict=False)), room),
                number(view.call.ttft_s) if view.call else "cut",
            )
            for view, moments in self._calls
        ]
        return lines + [
            (tool.ready_at, tool.node, self._tool(tool, room), "") for tool in self._tools
        ]

    def _tool(self, tool: ToolFinished, room: int) -> str:
        return self._draw(((tool.ready_at, tool.finished_at, TOOL),), room)

    def _draw(self, parts: Sequence[tuple[float, float, str]], room: int) -> str:
        """Every part that takes any time has a character at least."""
        cells = [" "] * room
        drawn = 0
        for begin, end, mark in parts:
            if end <= begin:
                continue
            first = min(max(self._column(begin, room), drawn), room - 1)
            drawn = min(max(self._column(end, room), first + 1), room)
            cells[first:drawn] = [mark] * (drawn - first)
        return "".join(cells).rstrip()

    def _column(self, at: float, room: int) -> int:
        """Where a moment is drawn; the edge for one outside the run."""
        return round(min(max(at / self._end, 0.0), 1.0) * room) if self._end > 0 else 0


def slowest(run: TraceRun, count: int = 3) -> list[str]:
    """The calls that took longest from their last input to their last token, and what for."""
    calls = [view.call for view in run.calls if view.call]
    ranked = sorted(calls, key=lambda call: call.ready_at - call.finished_at)[:count]
    return [
        f"{call.node}: {seconds(call.finished_at - call.ready_at)}, of which "
        f"{seconds(call.ttft_s)} to the first token ({_phases(call)}) and "
        f"{seconds(call.decode_s)} for {call.output_tokens:,} tokens"
        for call in ranked
    ]


def _phases(call: CallFinished) -> str:
    spent = {name: value for name, value in call.phases.items() if name != "decode"}
    first = sorted(spent.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} {seconds(value)}" for name, value in first) or "no phases recorded"
