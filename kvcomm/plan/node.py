"""A node in the simulation: its prompt enters a row as messages come, and its answer is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import simpy

from kvcomm.plan.memory import Claim
from kvcomm.plan.replica import AHEAD, BACKGROUND, READY, Decoding, Replica, Row, Waiting, Work
from kvcomm.plan.workload import Call, ToolUse

# As in the runtime; a test compares them. Chunks of a message that is followed.
FINE, COARSE, LEADING = 16, 256, 8


class Draft:
    """A message while it is written: `size` tokens in the end, at most `limit`."""

    def __init__(self, env: simpy.Environment, size: int, limit: int, follow: bool = True) -> None:
        self._env = env
        self.size = size
        self._limit = limit
        self._follow = follow
        self._written = 0
        self.finished_at = 0.0
        self.done = env.event()
        self._changed = env.event()

    @property
    def known(self) -> int:
        """Tokens that its readers may take."""
        if self.done.triggered:
            return self.size
        return min(self._written, self.size) if self._follow else 0

    @property
    def remaining(self) -> int:
        """The most tokens that may still come."""
        return 0 if self.done.triggered else max(self._limit - self._written, 1)

    @property
    def room(self) -> int:
        """Slots that a reader's row keeps for it."""
        return self.size if self.done.triggered else max(self._limit, self.size)

    def append(self) -> None:
        """One more token was sampled."""
        self._written += 1
        self._notify()

    def seal(self) -> None:
        """It is complete."""
        self.finished_at = self._env.now
        self.done.succeed()
        self._notify()

    def change(self) -> simpy.Event:
        """Wait for the next change."""
        return self._changed

    def _notify(self) -> None:
        self._changed.succeed()
        self._changed = self._env.event()


@dataclass
class Books:
    """What became of one call: seconds of the simulation, and prompt tokens by where from."""

    node: str
    ready_at: float = 0.0
    first_at: float = 0.0
    finished_at: float = 0.0
    prompt: int = 0
    computed: int = 0
    prefix: int = 0
    realigned: int = 0
    redone: int = 0
    sampled: int = 0

    @property
    def ttft_s(self) -> float:
        """From the last producer's final token to the first token."""
        return self.first_at - self.ready_at


class Node:
    """Runs one call of a graph on a replica, as `way` says: dense, exact, or as the trace did."""

    def __init__(
        self,
        env: simpy.Environment,
        replica: Replica,
        graph: int,
        call: Call,
        drafts: Mapping[str, Draft],
        way: str,
        call_s: float,
        realign_s: float | None,
        early: frozenset[str] = frozenset(),
        traced: bool = False,
    ) -> None:
        self._env = env
        self._replica = replica
        self._graph = graph
        self._call = call
        self._drafts = drafts
        self._way = way
        self._call_s = call_s
        self._realign_s = realign_s
        self._early = early
        self._traced = traced and way != "exact"
        self._began = env.now
        self.books = Books(call.node, prompt=call.prompt)

    def run(self) -> Waiting:
        """The call, from waiting for its inputs to what comes behind its message."""
        for name in self._call.senders:
            if name in self._early:
                yield self._drafts[name].done
        self._began = self._env.now
        while True:
            claim = yield from self._open()
            try:
                yield from self._fill(claim.row)
                break
            except simpy.Interrupt:  # a ready call needed the room: from the start, later
                self._replica.cancel(claim.row)
                self._replica.memory.leave(claim)
                self.books.redone += self.books.computed
                self.books.computed = self.books.prefix = self.books.realigned = 0
        yield from self._finish(claim)

    def _heard(self) -> dict[str, Draft]:
        return {n: self._drafts[n] for n in self._call.senders if n not in self._early}

    def _row(self, priority: int) -> Row:
        heard = self._heard()
        room = sum(
            heard[p.sender].room if p.sender in heard else p.tokens for p in self._call.pieces
        )
        capacity = room + max(self._call.limit, self._call.sampled)
        return Row((self._graph, self._call.node), capacity, priority, opening=self._call.opening)

    def _open(self) -> Waiting:
        """A row: at once to work ahead, if there is room; else when all inputs are there."""
        waits = [draft.done for draft in self._heard().values() if not draft.done.triggered]
        if waits and self._way != "dense":
            me = self._env.active_process
            assert me is not None
            spare = self._replica.memory.spare(self._row(AHEAD), partial(me.interrupt, "room"))
            if spare is not None:
                return spare
        if waits:
            yield self._env.all_of(waits)
        claim = self._replica.memory.enter(self._row(READY))
        if not claim.admitted.triggered:  # else at once: rows keep their order
            yield claim.admitted
        return claim

    def _fill(self, row: Row) -> Waiting:
        """Extend the row as inputs become known; then it decodes."""
        if self._call.base and self._traced:
            bare = Row((self._graph, f"base of {self._call.node}"), 0, row.priority)
            yield self._replica.compute(
                Work(bare, 0, self._call.base, self._call.base, self._env.event())
            )
        pending: list[tuple[int, int]] = []  # tokens, and what the trace computed of them
        heard = self._heard()
        for index, piece in enumerate(self._call.pieces):
            draft = heard.get(piece.sender or "")
            if draft is None:
                pending.append((piece.tokens, piece.computed))
            elif self._way == "dense":
                yield draft.done
                pending.append((piece.tokens, piece.computed))
            else:
                later = [
                    heard[p.sender] for p in self._call.pieces[index + 1 :] if p.sender in heard
                ]
                lead = piece.tokens if self._way == "exact" else piece.leading
                done = yield from self._follow(row, draft, lead, pending, later)
                pending.append((piece.tokens - done, piece.computed - done))
        finished = [draft.finished_at for draft in heard.values()]
        self.books.ready_at = max([self._began, *finished])
        row.priority = READY
        yield from self._flush(row, pending, last=True)

    def _follow(
        self,
        row: Row,
        draft: Draft,
        lead: int,
        pending: list[tuple[int, int]],
        later: list[Draft],
    ) -> Waiting:
        """Compute `lead` tokens of a message while it is written, in step with the whole.

        Returns how many there are when it is done.
        """
        done = 0
        while not draft.done.triggered:
            if pending:
                yield from self._flush(row, pending)
                continue
            last = all(draft.remaining >= other.remaining for other in later)
            fine = FINE if lead == draft.size else LEADING
            chunk = fine if last else COARSE
            fresh = (draft.known * lead // max(draft.size, 1) - done) // chunk * chunk
            if fresh:
                yield from self._flush(row, [(fresh, fresh)], settle=False)
                done += fresh
            else:
                yield draft.change()
        return done

    def _flush(
        self,
        row: Row,
        pending: list[tuple[int, int]],
        *,
        last: bool = False,
        settle: bool = True,
    ) -> Waiting:
        """Extend the row by everything that is known, and empty `pending`."""
        size = sum(tokens for tokens, _ in pending)
        computed = sum(count for _, count in pending) if self._traced else size
        if last:
            computed = max(computed, 1)
        pending.clear()
        with self._replica.runtime.request() as turn:
            yield turn
            yield self._env.timeout(self._call_s)
        realigned = size - computed
        seconds = self._realigning(realigned)
        if seconds:
            yield self._replica.spend(seconds)
        start, row.length = row.length, row.length + size
        pilot = self._call.pilot if last and self._traced else 0

        def done() -> None:
            if settle and self._way == "exact":
                self._replica.memory.settle(row)
            if last:
                self._replica.decode(Decoding(row, self._call.sampled, self._emit))

        work = Work(
            row,
            start,
            row.length,
            computed + pilot,
            self._env.event(),
            adopts=self._way == "exact",
            answers=last,
            done=done,
        )
        # Booked when it is done: what gives way before counts as nothing.
        yield self._replica.compute(work)
        self.books.computed += work.tokens - pilot
        self.books.prefix += work.prefix
        self.books.realigned += realigned

    def _realigning(self, tokens: int) -> float:
        """Seconds of predicting and filling: by the hardware, else this call's share of them."""
        if not tokens:
            return 0.0
        if self._realign_s is not None:
            return tokens * self._realign_s
        return self._call.realign_s * tokens / max(self._call.realigned, 1)

    def _emit(self) -> None:
        """A token was sampled."""
        books = self.books
        books.sampled += 1
        if books.sampled == 1:
            books.first_at = self._env.now
        own = self._drafts[self._call.node]
        own.append()
        if books.sampled == self._call.sampled:
            books.finished_at = self._env.now
            own.seal()

    def _finish(self, claim: Claim) -> Waiting:
        """Decode, and what comes behind the message: learning, audits."""
        yield self._drafts[self._call.node].done
        memory = self._replica.memory
        if self._way == "exact":
            memory.settle(claim.row)
        if self._traced:
            memory.keep_base(self._call.base + self._call.message)
            if self._realign_s is None and self._call.observe_s:
                yield self._replica.spend(self._call.observe_s)
        memory.leave(claim)
        if self._traced and self._call.audit:
            bare = Row((self._graph, f"audit of {self._call.node}"), 0, BACKGROUND)
            self._replica.compute(
                Work(bare, 0, self._call.audit, self._call.audit, self._env.event())
            )


def use_tool(env: simpy.Environment, tool: ToolUse, drafts: Mapping[str, Draft]) -> Waiting:
    """A tool runs when it has heard everybody, as long as it did in the trace."""
    yield env.all_of([drafts[name].done for name in tool.senders])
    yield env.timeout(tool.seconds)
    for name in tool.texts:
        drafts[name].seal()
