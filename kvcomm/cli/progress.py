"""Progress of a run on stderr: the graph filling in, in a terminal, and plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from kvcomm.cli.output import complain, err_console

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.text import Text

    from kvcomm.trace.events import CallFinished, Event


class Counted:
    """Progress through `total` things; as a context it shows a bar, where stderr is a terminal.

    The bar says what, how many of how many and the time left, and goes when it is done.
    """

    def __init__(self, title: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._bar: Progress | None = None
        if (terminal := err_console()).is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(
                "{task.description}",
                *columns,
                console=terminal,
                transient=True,
                redirect_stdout=False,
            )
            self._task = self._bar.add_task(title, total=total)

    def show(self, what: str, done: int, line: str = "") -> None:
        """So many are done; `line` says so where there is no bar."""
        if self._bar:
            self._bar.update(self._task, completed=done, description=what)
        elif line:
            complain(line)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


class RunProgress:
    """Listens to the events of one run. Use as a context manager and as a listener."""

    def __init__(self) -> None:
        from rich.live import Live

        self._console = err_console()
        self._lines: dict[str, str] = {}
        self._senders: dict[str, list[str]] = {}
        self._live: Live | None = None
        if self._console.is_terminal:
            # Transient: what stays on the screen is the result, which goes to stdout.
            self._live = Live(
                console=self._console,
                transient=True,
                redirect_stdout=False,
                get_renderable=self._drawing,
            )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        from kvcomm.trace.text import plural, seconds, shorten

        if event.kind == "run":
            self._lines = {info.name: "waits" for info in event.nodes}
            self._senders = {info.name: info.senders for info in event.nodes}
        elif event.kind == "restart":
            self._lines = dict.fromkeys(self._lines, "waits")
            complain(event.error)
        elif event.kind == "node":
            self._lines[event.node] = "works"
        elif event.kind == "call":
            self._note(event.node, _done(event))
        elif event.kind == "tool":
            took = seconds(event.finished_at - event.ready_at)
            self._note(event.node, f"{plural(len(event.texts), 'text')} in {took}")
        elif event.kind == "retry":
            what = shorten(event.error, 120)
            again = f"tries again in {seconds(event.wait_s)}"
            self._note(event.node, f"attempt {event.attempt} failed: {what}; {again}")
        elif event.kind == "error" and event.node is not None:
            self._note(event.node, f"failed: {shorten(event.error, 120)}")

    def _note(self, node: str, line: str) -> None:
        self._lines[node] = line
        if self._live is None:
            complain(f"{node}: {line}")

    def _drawing(self) -> Text:
        """The graph, and behind every node how far it is."""
        from rich.text import Text

        from kvcomm.trace.lanes import draw_lanes

        drawing = draw_lanes(self._senders, self._lines)
        return Text(drawing, no_wrap=True, overflow="ellipsis")


def _done(call: CallFinished) -> str:
    from kvcomm.trace.text import plural, seconds

    wrote = plural(call.output_tokens, "token")
    return f"{wrote} in {seconds(call.decode_s)}, first after {seconds(call.ttft_s)}"
