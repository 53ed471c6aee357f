"""Audits behind a result: finished before a command ends, and said so where that takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvcomm.cli.output import complain
from kvcomm.trace.text import plural

if TYPE_CHECKING:
    from kvcomm.session import Session

LONG_S = 1.0


@contextmanager
def noticed(auditing: Callable[[], int]) -> Iterator[None]:
    """Say once on stderr how many audits a command waits for, where it waits more than a second."""

    def say() -> None:
        if count := auditing():
            complain(f"finishing {plural(count, 'audit')}")

    timer = threading.Timer(LONG_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def finish(session: Session) -> None:
    """Finish the audits behind a printed result; Ctrl-C gives up those that are not done."""
    try:
        with noticed(lambda: session.auditing):
            session.drain()
    except KeyboardInterrupt:
        session.close(audits=False)
        complain("the other audits were given up")
