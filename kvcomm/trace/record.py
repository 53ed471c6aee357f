"""Writing a trace: a run folder with one `trace.jsonl`, flushed line by line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from kvcomm.errors import UsageError
from kvcomm.trace.events import Event, PromptText, Restarted, _Event

log = logging.getLogger("kvcomm.run")

E = TypeVar("E", bound=_Event)
Listener = Callable[[Event], None]
TRACE_FILE = "trace.jsonl"


def new_run_folder(name: str, out: Path | None = None, root: Path = Path("runs")) -> Path:
    """Create `out`, or `runs/TIME-NAME` with a free name. A folder with a trace is refused."""
    if out is not None:
        if (out / TRACE_FILE).exists():
            raise UsageError(f"{out} already holds a trace: choose another --out")
        folders = [out]
    else:
        slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{slug}"
        folders = [root / stem, *(root / f"{stem}-{i}" for i in range(2, 1000))]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"cannot write the run folder {folder}: {error.strerror}") from None
        return folder
    raise UsageError(f"no free run folder under {root}")


class LineFile:
    """Appends lines to `path`, or begins it `anew`; each is written at once. Raises `OSError`."""

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        self._file = path.open("wb" if anew else "ab", buffering=0)

    def append(self, line: str) -> None:
        """Write `line` and its end, or nothing of it. Raises `OSError`."""
        data = line.encode("utf-8", errors="replace") + b"\n"
        whole = self._file.seek(0, 2)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(whole)
            raise

    def clear(self) -> None:
        """Remove all lines. Raises `OSError`."""
        self._file.truncate(0)

    @property
    def closed(self) -> bool:
        """Whether it takes no more lines."""
        return self._file.closed

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()


class Recorder:
    """Appends events to a trace and stamps them with the seconds since it began.

    `listeners` see every event as it is written (progress displays). A recorder without a folder
    only calls its listeners, and with texts of prompts only if they want `texts`. A trace that
    cannot be written (a full disk) ends there, whole lines only, and a listener that raises hears
    nothing more: the run is worth more than what is told of it. `warnings` say what was lost.
    `on_close` is called when all who write are done.
    """

    def __init__(
        self,
        folder: Path | None,
        listeners: Sequence[Listener] = (),
        *,
        texts: bool = False,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self.path = folder
        self.warnings: list[str] = []
        self._wants_texts = texts or folder is not None
        self._first = ""
        self._listeners = list(listeners)
        self._start = time.perf_counter()
        self._file = LineFile(folder / TRACE_FILE, anew=True) if folder else None
        self._texts: dict[Hashable, int] = {}
        self._holders = 1
        self._on_close = on_close

    def since_start(self, clock: float) -> float:
        """A `time.perf_counter()` reading as seconds since the run began."""
        return clock - self._start

    def write(self, kind: type[E], **fields: Any) -> E:
        """Record one event and return it."""
        event = kind(t=self.since_start(time.perf_counter()), **fields)
        self.append(event)
        return event

    def append(self, event: _Event) -> None:
        line = event.model_dump_json()
        self._first = self._first or line
        self._line(line)
        for listener in tuple(self._listeners):
            try:
                listener(event)  # type: ignore[arg-type]
            except Exception as error:
                self._listeners.remove(listener)
                name = getattr(listener, "__qualname__", None) or type(listener).__qualname__
                what = f"{type(error).__name__}: {error}"
                self.warnings.append(f"the listener {name} raised {what}; it heard nothing more")
                log.warning("the listener %s raised and hears nothing more", name, exc_info=error)

    def _line(self, line: str) -> None:
        if self._file and not self._file.closed:
            try:
                self._file.append(line)
            except OSError as error:
                why = error.strerror or error
                self.warnings.append(f"the trace in {self.path} is cut short: {why}")
                self._file.close()

    def begin_again(self, why: str) -> None:
        """The run starts over: of its trace the first event stays, and one says `why`."""
        if self._file and not self._file.closed:
            self._file.clear()
            self._line(self._first)
        self._texts.clear()
        self.write(Restarted, error=why)

    def text(self, key: Hashable, spell: Callable[[], str]) -> int | None:
        """The id of the text that `key` stands for; it is spelled and written when it is new.

        None where nobody wants it.
        """
        if not self._wants_texts:
            return None
        if key not in self._texts:
            self._texts[key] = len(self._texts)
            self.write(PromptText, id=self._texts[key], text=spell())
        return self._texts[key]

    def hold(self) -> None:
        """Keep the file open for one more who writes; each of them has to `release` it."""
        self._holders += 1

    def release(self) -> None:
        """One who wrote is done; with the last one the file is closed."""
        self._holders -= 1
        if not self._holders:
            if self._file:
                self._file.close()
            self._on_close()
