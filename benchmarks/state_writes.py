"""How many bytes of learned state a request writes.

    python benchmarks/state_writes.py [REQUESTS]

Requests of three tenants (namespaces) in turn, each a chain of two agents in the mode `auto`, in a
fresh state folder. Counted is what reaches the folder: behind the answers, and when the sessions
close. For comparison: the size of the whole folder, which is what writing everything after every
request would write each time.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

from kvcomm import Session, load_engine
from kvcomm.agents import critic, solver
from kvcomm.graphs import chain


class Count(logging.Handler):
    """Adds up what sessions say that they have written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.nbytes = self.writes = 0

    def emit(self, record: logging.LogRecord) -> None:
        """One write."""
        if "are written to" in record.msg:
            self.nbytes += int(record.args[0])  # type: ignore[index, arg-type]
            self.writes += 1


def main(requests: int) -> None:
    """Print bytes a request."""
    count = Count()
    log = logging.getLogger("kvcomm")
    log.addHandler(count)
    log.setLevel(logging.DEBUG)
    graph = chain(solver(max_tokens=24), critic(max_tokens=24))
    with tempfile.TemporaryDirectory() as name, load_engine("smollm2-135m") as engine:
        folder = Path(name)
        sessions = [
            Session(engine, state=folder, runs=None, namespace=f"tenant {i}") for i in range(3)
        ]
        began = time.perf_counter()
        for number in range(requests):
            sessions[number % 3].run(graph, task=f"What is {number} times {number + 7}?")
        took = time.perf_counter() - began
        meanwhile = count.writes
        for session in sessions:
            session.close()
        whole = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{requests} requests in {took:.0f} s, {count.nbytes / requests / 1e6:.1f} MB a request:")
    print(f"{meanwhile} writes meanwhile, {count.writes - meanwhile} when the sessions closed.")
    print(f"Writing all of it behind every request would be {whole / 1e6:.0f} MB a request.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
