"""Progress of an evaluation on stderr: a bar with score, reuse and time left, or plain lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvcomm.cli.output import complain
from kvcomm.cli.progress import Counted

if TYPE_CHECKING:
    from kvcomm.tasks.record import Sample


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say how an evaluation goes on that is stopped by a signal."""
    try:
        yield
    except KeyboardInterrupt:
        if out.exists():
            complain(f"what is done is kept: the same command with --out {out} goes on from there")
        raise


class EvalProgress(Counted):
    """Takes every sample that is done. Use as a context manager."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._by_mode: dict[str, list[Sample]] = {}
        self._warm = 0
        super().__init__("samples", total)

    def __call__(self, sample: Sample) -> None:
        """One sample more."""
        if sample.warmup:
            self._warm += 1
        else:
            self._by_mode.setdefault(sample.mode, []).append(sample)
        done = self._warm + sum(map(len, self._by_mode.values()))
        if sample.error:
            complain(f"{sample.task} ({sample.mode}): {sample.reason}: {sample.error}")
        line = "; ".join(map(_standing, self._by_mode.values())) or "warming up"
        if self._bar:
            self._bar.update(self._task, completed=done, description=line)
        elif done % 10 == 0 or done == self._total:
            complain(f"{done} of {self._total}: {line}")


def _standing(samples: list[Sample]) -> str:
    """How a mode stands: its score, and the share of prompt tokens that was not computed."""
    calls = [call for sample in samples for call in sample.calls]
    prompt = sum(call.prompt_tokens for call in calls) or 1
    reused = 1 - sum(call.computed_tokens for call in calls) / prompt
    score = sum(sample.value for sample in samples) / len(samples)
    return f"{samples[0].mode} {score:.1%}, reused {reused:.0%}"
