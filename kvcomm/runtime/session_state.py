"""What a session learns and keeps: its state folder, and the priors of its model."""

from __future__ import annotations

import logging
from pathlib import Path

from kvcomm.engine.base import Engine
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.state import load_audits, save_audits
from kvcomm.runtime.apart import apart
from kvcomm.runtime.priors import known, measure
from kvcomm.runtime.saving import Saver
from kvcomm.trace.events import StateRead

log = logging.getLogger(__name__)


class SessionState:
    """Reads what earlier sessions learned, once; writes what is new, behind the answers.

    `folder` is None for a session that keeps nothing. `auto` is there in that mode.
    """

    def __init__(
        self, engine: Engine, folder: Path | None, namespace: str, auto: Auto | None
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._namespace = namespace
        self._auto = auto
        self._read: StateRead | None = None
        self._saver = Saver(self._write, engine)

    async def read(self) -> StateRead | None:
        """What earlier sessions learned. Raises `StateError` for another model's state."""
        if self._folder is None or self._read is not None:
            return self._read
        read = await self._engine.load_state(self._folder, self._namespace)
        reason, auto = read.reason, self._auto
        if auto and (refused := load_audits(self._folder, auto, self._namespace)):
            reason += f"; set aside: {refused}"
        self._read = StateRead(
            path=read.path, templates=read.templates, samples=read.samples, reason=reason
        )
        return self._read

    @property
    def informed(self) -> bool:
        """Whether `auto` knows the model's priors, or needs none."""
        auto = self._auto
        if auto is None or auto.priors or auto.target == 0:
            return True
        priors = known(self._engine, auto.levels)
        if priors is not None:
            auto.priors = priors
        return priors is not None

    async def measure(self) -> None:
        """Measure the model's priors, where `auto` needs them and they are not known."""
        if self._auto is not None and not self.informed:
            self._auto.priors = await measure(self._engine, self._auto.levels)

    async def measure_behind(self) -> None:
        """`measure` behind the answers; what goes wrong is logged."""
        try:
            await self.measure()
        except Exception as error:
            log.warning(
                "%s could not be measured, and is again behind the next run: %s",
                self._engine.model,
                str(error) or type(error).__name__,
            )

    @property
    def failed(self) -> str:
        """Why saving failed the last time, if it did."""
        return self._saver.failed

    def changed(self) -> None:
        """Something was learned: it is saved within a minute."""
        if self._folder is not None:
            self._saver.changed()

    async def save(self) -> None:
        """Save what is new, now. Raises `StateError`; what was learned stays, to be saved later."""
        await apart(self._saver.flush)

    def close(self) -> None:
        """Save what is new; what goes wrong is logged."""
        self._saver.flush_or_log()

    async def _write(self) -> None:
        """Write what is new; called by the saver, on its thread."""
        assert self._folder is not None
        written = await self._engine.save_state(self._folder, self._namespace)
        if self._auto is not None:
            written += save_audits(self._folder, self._auto)
        log.debug("%d bytes of what was learned are written to %s", written, self._folder)
