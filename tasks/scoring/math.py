"""Mathematical answers, found in a text and compared by a process that can be killed."""

from __future__ import annotations

import contextlib
import json
import select
import sys
import threading
import weakref
from collections.abc import Callable
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from kvcomm.extras import need
from kvcomm.tasks.scoring.score import Score, right_or_wrong

TIMEOUT_S = 5.0
START_S = 60.0
WORKER = (sys.executable, "-m", "kvcomm.tasks.scoring.math_worker")


class MathScorer:
    """Compares answers with gold ones; math-verify runs in a process of its own.

    Its limits rest on signals, which only a main thread gets, so a pair that takes longer than
    `timeout_s` ends the process and counts as wrong, and the next pair starts another one. Safe to
    use from several threads. Raises `UsageError` when math-verify is not installed.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        need("math_verify", "tasks")
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: Popen[bytes] | None = None
        self._end: Callable[[], object] | None = None

    def score(self, text: str, gold: str) -> Score:
        """Whether the answer in `text` equals `gold`; `math_answer` says where it is looked for.

        An answer of which only a part can be read is not comparable, and wrong.
        """
        try:
            reply = self._ask({"text": text, "gold": gold})
        except TimeoutError:
            late = f"timed out after {self._timeout_s:g} s"
            return right_or_wrong(False, "", late, error=f"comparing with {gold!r} {late}")
        if "error" in reply:
            return right_or_wrong(False, "", "not comparable", error=str(reply["error"]))
        return right_or_wrong(reply["correct"], reply["extracted"], reply["reason"])

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._kill()
                    self._process = Popen(WORKER, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
                    # Also when the scorer is collected, and when Python exits.
                    self._end = weakref.finalize(self, _end, self._process)
                    # The first comparison loads everything and has more time.
                    _exchange(self._process, {"gold": "1", "text": "2"}, START_S)
                return _exchange(self._process, request, self._timeout_s)
            except BaseException as error:
                self._kill()
                if isinstance(error, (OSError, ValueError)) and not isinstance(error, TimeoutError):
                    return {"error": f"the process that compares failed: {error}"}
                raise

    def _kill(self) -> None:
        if self._end is not None:
            self._end()
        self._end = self._process = None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def __enter__(self) -> MathScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exchange(process: Popen[bytes], request: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """What a process answers. Raises `OSError`, and `TimeoutError` for an answer that is late."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    if not select.select([process.stdout], [], [], timeout_s)[0]:
        raise TimeoutError
    if not (line := process.stdout.readline()):
        raise BrokenPipeError("it sent nothing")
    reply: dict[str, Any] = json.loads(line)
    return reply


def _end(process: Popen[bytes]) -> None:
    process.kill()
    # What could not be written is flushed once more, to nobody.
    with contextlib.suppress(OSError), process:
        pass
