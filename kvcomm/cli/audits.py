"""Audits behind a result: finished before a command ends, and said so where that takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kvcomm.cli.output import complain
from kvcomm.trace.text import plural

if TYPE_CHECKING:
    from kvcomm.session import Session
    from kvcomm.tasks.evaluate import Evaluation

LONG_S = 1.0


@contextmanager
def noticed(waiting: Session | Evaluation) -> Iterator[None]:
    """Say once on stderr how many audits a command waits for, where it waits more than a second."""

    def say() -> None:
        if count := waiting.auditing:
            complain(f"finishing {plural(count, 'audit')}")

    timer = threading.Timer(LONG_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def finish(session: Session) -> None:
    """Finish what is done behind a printed result.

    Ctrl-C leaves the model's measurement for later, and gives up the audits that are not done.
    """
    if session.measuring:
        complain("the model is measured to the end, for the next run (Ctrl-C: not now)")
        with suppress(KeyboardInterrupt):
            session.warm_up()
    try:
        with noticed(session):
            session.drain()
    except KeyboardInterrupt:
        session.close(audits=False)
        complain("the other audits were given up")
