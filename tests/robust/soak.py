"""A soak: mixed graphs, modes and tenants on one small engine, and faults at random.

    python -m tests.robust.soak --minutes 30

Every request ends once: answered, failed as it had to, or cancelled on purpose. What `dense` and
`exact` answer is what they answer without faults, as long as the fault can be survived. Memory is
sampled, and has to be flat.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from kvcomm.agents import Agent, Tool
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine, runner
from kvcomm.engine.local.scheduler import STEP_TOKENS
from kvcomm.errors import KvcommError, NodeFailed
from kvcomm.graphs import AgentGraph, chain, debate, fully_connected, layered, random_dag, star
from kvcomm.kv.tiers import GONE
from kvcomm.session import Session
from tests.runtime.support import agent, rest

TASKS = ["Add 2 and 3.", "Name a bird that cannot fly.", "Why is the sky blue?", "Count to ten."]
MODES = ["dense", "exact", "exact", "kvcomm", "auto"]
TENANTS = ["", "alice", "bob"]
CONCURRENT = 4
SLOTS = 4000

Post = Callable[[str], str]


def member(name: str, tokens: int, post: Post | None = None) -> Agent:
    more = {} if post is None else {"post": post, "retries": 1, "backoff_s": 0.0}
    return agent(name, tokens, **more)


Make = Callable[[Post | None], AgentGraph]
GRAPHS: dict[str, Make] = {
    "chain": lambda post: chain(member("a", 20), member("b", 12, post), member("c", 6)),
    "full": lambda post: fully_connected(
        member("a", 16), member("b", 16, post), member("c", 16), member("d", 6)
    ),
    "debate": lambda post: debate(
        member("a", 12, post), member("b", 12), rounds=2, judge=member("j", 6)
    ),
    "star": lambda post: star(member("hub", 8), member("x", 12, post), member("y", 20)),
    "layered": lambda post: layered(
        [member("a", 8), member("b", 20, post)], [member("c", 8), member("d", 8)], [member("e", 4)]
    ),
    "random": lambda post: random_dag(
        *[member(f"n{i}", 4 + 3 * i, post if i == 2 else None) for i in range(7)], seed=5
    ),
    "tool": lambda post: AgentGraph(
        [Tool("facts", lambda texts: "Birds lay eggs."), member("a", 10, post), member("b", 6)],
        [("facts", "a"), ("facts", "b"), ("a", "b")],
    ),
}


@dataclass
class Summary:
    """What came of a soak; `problems` is empty when all is well."""

    seconds: float = 0.0
    started: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def growth(self) -> float:
        """Memory of the last quarter over that of the second, less one."""
        sizes = [size for _, size in self.memory]
        quarter = len(sizes) // 4
        if quarter == 0:
            return 0.0
        before = statistics.median(sizes[quarter : 2 * quarter])
        return statistics.median(sizes[-quarter:]) / before - 1

    def lines(self) -> Iterator[str]:
        yield f"{self.started:,} requests in {self.seconds:,.0f} s"
        for title, found in (("ended", self.ended), ("faults", self.faults)):
            yield f"{title:8} " + ", ".join(f"{count:,} {what}" for what, count in found.items())
        every = max(len(self.memory) // 10, 1)
        curve = [f"{size / 2**20:,.0f} ({at:,})" for at, size in self.memory[::every]]
        yield "memory   MiB after requests: " + ", ".join(curve)
        yield f"growth   {self.growth():+.1%} from the second quarter to the last"
        yield f"problems {len(self.problems)}"
        yield from self.problems[:20]


class Soak:
    def __init__(self, folder: Path, seed: int, faults: bool) -> None:
        self.random = random.Random(seed)
        self.faulty = faults
        self.summary = Summary()
        self._folder = folder
        self.engine: LocalEngine = load_engine(
            "random:llama-tiny", dtype="float64", device="cpu", kv_cache=self._folder / "spill"
        )
        self.engine.budget.limit = SLOTS * self.engine.slot_bytes
        self._expected: dict[tuple[str, str], str] = {}
        self._scarce = self._failed = False

    def references(self) -> None:
        """What every graph answers to every task, dense and without faults."""
        with Session(self.engine, reuse="dense", state=None, runs=None) as session:
            for name, make in GRAPHS.items():
                for task in TASKS:
                    self._expected[name, task] = session.run(make(None), task).answer

    @contextmanager
    def scarce_memory(self) -> Iterator[None]:
        """Let forwards run out of memory when `_scarce` says so."""
        forward = runner.packed_forward

        def scarce(*args: object) -> torch.Tensor:
            # Never twice running: what fails again with half of the tokens cannot be survived.
            if self._scarce and not self._failed:
                self._scarce, self._failed = False, True
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
            self._failed = False
            return forward(*args)  # type: ignore[arg-type]

        runner.packed_forward = scarce  # type: ignore[assignment]
        try:
            yield
        finally:
            runner.packed_forward = forward

    def fault(self) -> None:
        """Something goes wrong with the engine's caches, or with memory."""
        kind = self.random.choice(["vanished", "damaged", "prefixes lost", "memory", "nothing"])
        if kind == "nothing" or not self.faulty:
            return
        self.summary.faults[kind] += 1
        if kind == "memory":
            self._scarce = True
            self.engine.runner.limit = STEP_TOKENS
            return
        pick = self.random.random()

        def harm() -> None:
            if kind == "prefixes lost":
                self.engine.prefix.clear()
                return
            cache = self.engine.segments
            held = [entry for entry in cache._entries.values() if entry.held]
            if not held:
                return
            entry = held[int(pick * len(held))]
            if kind == "vanished":
                cache._forget(entry, GONE)
            else:  # what leaves memory is damaged there
                cache._move_down(entry)
                for file in (self._folder / "spill").rglob(f"{entry.key}.kv"):
                    file.write_bytes(file.read_bytes()[:-8])

        self.engine.core.call(harm)

    async def request(self) -> None:
        name = self.random.choice(list(GRAPHS))
        task, mode = self.random.choice(TASKS), self.random.choice(MODES)
        kinds = ["none", "post fails once", "post always fails", "cancelled"]
        kind = self.random.choices(kinds, [70, 15, 5, 10])[0] if self.faulty else "none"
        left = {"post fails once": 1, "post always fails": 1 << 30}.get(kind, 0)
        if kind != "none":
            self.summary.faults[kind] += 1

        def post(text: str) -> str:
            nonlocal left
            if left:
                left -= 1
                raise RuntimeError("injected")
            return text

        graph = GRAPHS[name](post if left else None)
        session = Session(
            self.engine,
            reuse=mode,
            state=self._folder / "state" if self.random.random() < 0.1 else None,
            runs=None,
            namespace=self.random.choice(TENANTS),
        )
        if session.auto is not None:  # measuring priors has no place here
            session.auto.priors = {level.name: 0.0 for level in session.auto.levels}
        run = asyncio.ensure_future(session.arun(graph, task))
        if kind == "cancelled":
            await asyncio.sleep(self.random.random() * 0.2)
            run.cancel()
        try:
            result = await run
        except asyncio.CancelledError:
            self.summary.ended["cancelled" if kind == "cancelled" else "lost"] += 1
        except KvcommError as error:
            expected = isinstance(error, NodeFailed) and kind == "post always fails"
            self.summary.ended["failed" if expected else "lost"] += 1
            if not expected:
                self.summary.problems.append(f"{name}, {mode}, {kind}: {error}")
        else:
            # Audits are made behind the answer; some sessions end while theirs wait.
            await asyncio.to_thread(session.close)
            self.summary.ended["answered"] += 1
            if mode in ("dense", "exact") and result.answer != self._expected[name, task]:
                self.summary.problems.append(f"{name}, {mode}, {kind}: another answer")

    async def run(self, more: Callable[[Summary], bool]) -> None:
        """Requests, some at a time, as long as `more` says so."""
        process = psutil.Process()

        async def worker() -> None:
            while more(self.summary):
                number = self.summary.started
                self.summary.started += 1
                if self.random.random() < 0.3:
                    self.fault()
                await self.request()
                if number % 5 == 0:
                    self.summary.memory.append((number, process.memory_info().rss))

        await asyncio.gather(*[worker() for _ in range(CONCURRENT)])

    def check(self) -> None:
        """What has to be true when nothing runs any more."""
        summary, engine = self.summary, self.engine
        rest(engine)
        if summary.started != summary.ended.total():
            summary.problems.append(f"{summary.started} requests, {summary.ended.total()} ended")
        if used := engine.admission.used:
            summary.problems.append(f"{used:,} bytes of sequences were never given back")
        waiting = [key for key, entry in engine.segments._entries.items() if entry.refs]
        if waiting:
            summary.problems.append(f"{len(waiting)} messages still wait for readers")
        used = engine.budget.segments() + engine.budget.offsets() + engine.budget.prefix()
        if used > engine.budget.limit:
            summary.problems.append(f"{used:,} bytes in caches, {engine.budget.limit:,} allowed")
        engine.segments.check_integrity()


def soak(seconds: float = 0.0, requests: int = 0, *, seed: int = 0, faults: bool = True) -> Summary:
    with tempfile.TemporaryDirectory(prefix="kvcomm-soak-") as folder:
        one = Soak(Path(folder), seed, faults)
        try:
            one.references()
            began = time.monotonic()
            with one.scarce_memory():
                asyncio.run(
                    one.run(lambda s: s.started < requests or time.monotonic() - began < seconds)
                )
            one.summary.seconds = time.monotonic() - began
            one.check()
        finally:
            one.engine.close()
        return one.summary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-faults", action="store_true")
    given = parser.parse_args()
    found = soak(60 * given.minutes, given.requests, seed=given.seed, faults=not given.no_faults)
    print("\n".join(found.lines()))
    sys.exit(1 if found.problems else 0)


if __name__ == "__main__":
    main()
