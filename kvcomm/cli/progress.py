"""Progress on stderr: a graph filling in or a bar, in a terminal, and plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rich.text import Text

from kvcomm.cli.output import complain, console
from kvcomm.trace.lanes import draw_lanes
from kvcomm.trace.log import told

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress

    from kvcomm.trace.events import Event

# What stays on the screen is the result, which goes to stdout.
LOOK: dict[str, Any] = {"transient": True, "redirect_stdout": False}


class Shown:
    """As a context it shows a display, if there is one, and removes it when it is done."""

    _display: Live | Progress | None = None

    def __enter__(self) -> Self:
        if self._display:
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display:
            self._display.stop()


class Counted(Shown):
    """Progress through `total` things; as a context it shows a bar, where stderr is a terminal.

    The bar says what, how many of how many and the time left, and goes when it is done.
    """

    def __init__(self, title: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._bar: Progress | None = None
        if (terminal := console(stderr=True)).is_terminal:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
            self._display = self._bar = Progress(
                *columns, TimeRemainingColumn(), console=terminal, **LOOK
            )
            self._task = self._bar.add_task(title, total=total)

    def show(self, what: str, done: int, line: str = "") -> None:
        """So many are done; `line` says so where there is no bar."""
        if self._bar:
            self._bar.update(self._task, completed=done, description=what)
        elif line:
            complain(line)


class RunProgress(Shown):
    """Listens to the events of one run. Use as a context manager and as a listener."""

    def __init__(self) -> None:
        from rich.live import Live

        self._lines: dict[str, str] = {}
        self._senders: dict[str, list[str]] = {}
        if (terminal := console(stderr=True)).is_terminal:
            self._display = Live(get_renderable=self._drawing, console=terminal, **LOOK)

    def __call__(self, event: Event) -> None:
        if event.kind == "run":
            self._senders = {info.name: info.senders for info in event.nodes}
        if event.kind in ("run", "restart"):
            self._lines = dict.fromkeys(self._senders, "waits")
        if event.kind == "restart":
            complain(event.error)
        elif event.kind == "node":
            self._lines[event.node] = "works"
        elif event.kind in ("call", "tool", "retry", "error") and event.node is not None:
            self._lines[event.node] = line = str(told(event))
            if self._display is None:
                complain(f"{event.node} {line}")

    def _drawing(self) -> Text:
        """The graph, and behind every node how far it is."""
        drawing = draw_lanes(self._senders, self._lines)
        return Text(drawing, no_wrap=True, overflow="ellipsis")
