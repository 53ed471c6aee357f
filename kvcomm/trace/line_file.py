"""A file that grows by whole lines, also when the disk fills up."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


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
