"""Mathematical answers: found in a text, and compared as expressions by a killable process."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.extract import announced, behind, last_box, leading_formula, numbers
from kvcomm.tasks.scoring.score import Score, right_or_wrong

TIMEOUT_S = 5.0
START_S = 60.0
WORKER = (sys.executable, "-m", "kvcomm.tasks.scoring.math_worker")
# What stands around a value without being part of it.
SPACING = re.compile(r"\\[,;!:> ()\[\]]|\\(?:left|right|displaystyle)\b|[~$]")
UNIT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{\s*([^{}]*)\}")
BOLD = re.compile(r"\\(?:textbf|mathbf|boldsymbol|bm)\{([^{}]*)\}")
BASE = re.compile(r"([0-9a-z]+)_\{?(\d+)\}?")  # digits and their base: 4210_5
# Words around a number, as against the letters of an expression.
WORDED = re.compile(r"[A-Za-z]{3,}|\b[kc]?m/(?:h|s)\b")


class MathScorer:
    """Compares answers with gold ones; math-verify runs in a process of its own.

    Its limits rest on signals, which only a main thread gets, so a pair that takes longer than
    `timeout_s` ends the process and counts as wrong, and the next pair starts another one. Safe to
    use from several threads. Raises `UsageError` when math-verify is not installed.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise UsageError("math-verify is not installed: pip install 'kvcomm[tasks]'")
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] | None = None

    def score(self, text: str, gold: str) -> Score:
        """Whether the answer in `text` equals `gold`.

        The answer is what stands in the last `\\boxed{}`; without one, what follows the last
        "answer is", "Answer:" or "####"; without that, the last number.
        """
        answer = math_answer(text)
        if answer is None:
            return right_or_wrong(False, "", "no answer found")
        if plain(answer) == plain(gold):
            return right_or_wrong(True, answer, "equal")
        if _other_base(answer, gold):
            return right_or_wrong(False, answer, f"it is {gold}")
        try:
            # math-verify takes bold type for a name: a bold 25 is no number to it.
            reply = self._ask({"gold": BOLD.sub(r"\1", gold), "answer": BOLD.sub(r"\1", answer)})
        except TimeoutError:
            late = f"timed out after {self._timeout_s:g} s"
            return right_or_wrong(False, answer, late, error=f"comparing with {gold!r} {late}")
        if "error" in reply:
            return right_or_wrong(False, answer, "not comparable", error=str(reply["error"]))
        if not reply["parsed"]:
            return right_or_wrong(
                False, answer, f"other text than {gold!r}, which is no expression"
            )
        return right_or_wrong(
            reply["equal"], answer, "equal" if reply["equal"] else f"it is {gold}"
        )

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        with self._lock:
            try:
                process = self._started()
                assert process.stdin
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                return self._read(process, self._timeout_s)
            except BaseException as error:
                self._kill()
                if isinstance(error, (OSError, ValueError)) and not isinstance(error, TimeoutError):
                    return {"error": f"the process that compares failed: {error}"}
                raise

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, warm: the first comparison loads everything and has more time."""
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._process = subprocess.Popen(
                WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            # Also when the scorer is collected, and when Python exits.
            self._end = weakref.finalize(self, _end, self._process)
            assert self._process.stdin
            self._process.stdin.write(b'{"gold": "1", "answer": "1"}\n')
            self._process.stdin.flush()
            self._read(self._process, START_S)
        return self._process

    @staticmethod
    def _read(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
        assert process.stdout
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        if not ready:
            raise TimeoutError
        line = process.stdout.readline()
        if not line:
            raise BrokenPipeError("it sent nothing")
        reply: dict[str, Any] = json.loads(line)
        return reply

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


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        # What could not be written is flushed once more, to nobody.
        with contextlib.suppress(OSError):
            if pipe:
                pipe.close()


def math_answer(text: str) -> str | None:
    """The answer in a text; None where there is none."""
    boxed = last_box(text)
    if boxed:
        return boxed
    if formula := leading_formula(behind(text) or ""):
        return formula
    said = announced(text)
    if said is None:
        found = numbers(text)
        return found[-1] if found else None
    bare = said.strip("$ ")
    # "18 dollars a day" is 18; an expression in LaTeX or of several terms stays as it is.
    worded = WORDED.search(bare) and "\\" not in bare
    found = numbers(bare) if worded else []
    return found[0] if len(found) == 1 else bare


def plain(text: str) -> str:
    """An answer without what stands around its value: spacing, sizes, texts' wrappers, case."""
    bare = UNIT.sub(r"\1", SPACING.sub("", text.replace("\\$", "")))
    bare = bare.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return re.sub(r"\s+", "", bare).rstrip(".").lower()


def _other_base(answer: str, gold: str) -> bool:
    """Whether both are written in a base and differ in value; math-verify reads no bases."""
    found = [BASE.fullmatch(plain(text)) for text in (answer, gold)]
    try:
        values = [int(match[1], int(match[2])) for match in found if match]
    except ValueError:  # letters, or digits that the base does not have
        return False
    return len(values) == 2 and values[0] != values[1]
