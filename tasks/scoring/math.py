"""Mathematical answers: found in a text, and compared as expressions by a killable process."""

from __future__ import annotations

import importlib.util
import json
import re
import select
import subprocess
import sys
import threading
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.extract import announced, last_box, numbers
from kvcomm.tasks.scoring.score import Score, right_or_wrong

TIMEOUT_S = 5.0
START_S = 60.0
WORKER = (sys.executable, "-m", "kvcomm.tasks.scoring.math_worker")
# What stands around a value without being part of it.
SPACING = re.compile(r"\\[,;!:> ]|\\(?:left|right|displaystyle)\b|[~$]")
UNIT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{\s*([^{}]*)\}")


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
        try:
            reply = self._ask({"gold": gold, "answer": answer})
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
                if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                    return {"error": f"the process that compares ended: {error}"}
                raise

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, warm: the first comparison loads everything and has more time."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
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
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            self._process = None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def __enter__(self) -> MathScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def math_answer(text: str) -> str | None:
    """The answer in a text; None where there is none."""
    boxed = last_box(text)
    if boxed:
        return boxed
    said = announced(text)
    if said is None:
        found = numbers(text)
        return found[-1] if found else None
    bare = said.strip("$ ")
    # "18 dollars a day" is 18; an expression in LaTeX or of several terms stays as it is.
    worded = re.search(r"[A-Za-z]{3,}", bare) and "\\" not in bare
    found = numbers(bare) if worded else []
    return found[0] if len(found) == 1 else bare


def plain(text: str) -> str:
    """An answer without what stands around its value: spacing, sizes, texts' wrappers, case."""
    bare = UNIT.sub(r"\1", SPACING.sub("", text.replace("\\$", "")))
    bare = bare.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return re.sub(r"\s+", "", bare).rstrip(".").lower()
