"""A scheduler and its workers without vLLM: blocks, a prefix cache, and entries that are tokens.

It runs requests through a `Catalogue` as vLLM does, and checks what is promised: that orders name
entries that are there, that they hold the very tokens of the prompt, and that blocks are balanced.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvcomm.vllm.catalogue import Catalogue
from kvcomm.vllm.facts import Facts, Told
from kvcomm.vllm.orders import Load, Orders, Save
from kvcomm.vllm.protocol import Reply, Request

BLOCK = 4


@dataclass
class Running:
    """A request under way."""

    key: str
    tokens: list[int]
    prompt: int
    salt: str
    blocks: list[int] = field(default_factory=list)
    computed: int = 0


class Scheduler:
    """Steps of a server with `blocks` blocks of 4 tokens."""

    def __init__(
        self, budget: int = 400, blocks: int = 64, ranks: int = 1, ttl: float = 100
    ) -> None:
        self.now = 0.0
        self.catalogue = Catalogue(
            block=BLOCK,
            token_bytes=1,
            budget=budget,
            ranks=ranks,
            row_s=ttl,
            clock=lambda: self.now,
        )
        self.free = blocks
        self.used: Counter[int] = Counter()
        self.cached: dict[tuple[str, tuple[int, ...]], int] = {}
        self.entries: dict[int, tuple[int, ...]] = {}
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.failed: list[Load] = []
        self.lessons: list[int] = []
        self.live: list[Running] = []
        self._blocks = itertools.count()
        self._keys = itertools.count()

    # --- what vLLM does ---

    def start(
        self,
        tokens: Sequence[int],
        salt: str = "",
        ask: Request | None = None,
        refused: str = "",
    ) -> Running:
        """A request arrives."""
        run = Running(f"r{next(self._keys)}", list(tokens), len(tokens), salt)
        self.live.append(run)
        params = ask.to_json() if ask is not None else None
        self.catalogue.arrived(run.key, run.tokens, salt, params, refused)
        self.settle()
        return run

    def schedule(self, run: Running, emitted: int = 0) -> int:
        """It gets its blocks, and what is supplied; returns the tokens that are there then."""
        local = 0
        total = len(run.tokens)
        while (local + 1) * BLOCK < total:
            block = self.cached.get((run.salt, tuple(run.tokens[: (local + 1) * BLOCK])))
            if block is None:
                break
            run.blocks.append(block)
            local += 1
        self.touch(run.blocks)
        more = self.catalogue.match(run.key, total, local * BLOCK, emitted)
        fresh = [next(self._blocks) for _ in range(-(-total // BLOCK) - local)]
        self.touch(fresh)
        run.blocks += fresh
        self.catalogue.allocated(run.key, more, run.blocks)
        run.computed = local * BLOCK + more
        assert run.computed < total
        return run.computed

    def step(self, *completing: Running) -> Orders:
        """A step that completes the prompts of these."""
        for run in completing:
            self.catalogue.completed(run.key, run.blocks, self.free)
            self.settle()
        orders = self.catalogue.take()
        held = Counter(self.used)
        self.settle()
        for save in orders.before:
            for copy in save.copies:
                read = save.blocks[copy.start // BLOCK : -(-copy.stop // BLOCK)]
                assert all(held[block] for block in read), "read too late"
        self._work(orders)
        return orders

    def finish(self, run: Running, answer: Sequence[int] = (), ended: str = "") -> Reply | None:
        """A request is over, with this answer, whose last token was not computed."""
        run.tokens += answer
        self.live.remove(run)
        self.cache(run)
        held = len(run.tokens) - 1
        count = -(-len(run.tokens) // BLOCK) - len(run.blocks)
        more = [next(self._blocks) for _ in range(count)]
        self.touch(more)
        run.blocks += more
        self.content |= {b: (run.key, tuple(run.tokens)) for b in run.blocks}
        reply = self.catalogue.finished(run.key, run.tokens, held, run.blocks, ended)
        self.settle()
        self.release(run.blocks)
        return reply

    def ask(
        self,
        tokens: Sequence[int],
        salt: str = "",
        ask: Request | None = None,
        answer: Sequence[int] = (9,),
    ) -> Reply | None:
        """All of a request, and the empty step behind it."""
        run = self.start(tokens, salt, ask)
        self.schedule(run)
        self.step(run)
        reply = self.finish(run, answer)
        self.step()
        return reply

    def cache(self, run: Running) -> None:
        """Its full blocks are found by others with its salt."""
        for i in range(min(run.prompt // BLOCK, len(run.blocks))):
            key = (run.salt, tuple(run.tokens[: (i + 1) * BLOCK]))
            self.cached.setdefault(key, run.blocks[i])

    def forget(self) -> None:
        """Blocks that nobody holds are used again."""
        self.cached = {key: block for key, block in self.cached.items() if self.used[block]}

    # --- blocks ---

    def touch(self, blocks: Sequence[int]) -> None:
        """One more user of each."""
        self.free -= sum(not self.used[block] for block in blocks)
        self.used.update(blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """One less."""
        for block in blocks:
            self.used[block] -= 1
            assert self.used[block] >= 0, "freed twice"
            self.free += not self.used[block]

    def settle(self) -> None:
        """As the connector does."""
        rows = self.catalogue.rows
        self.touch(rows.pins)
        self.cached = {k: b for k, b in self.cached.items() if b not in set(rows.stale)}
        self.release(rows.unpins)
        rows.pins, rows.unpins, rows.stale = [], [], []

    # --- workers ---

    def _work(self, orders: Orders) -> None:
        for save in orders.before:
            tokens = next(self.content[b][1] for b in save.blocks[::-1] if b in self.content)
            self._save(save, tokens)
        for load in orders.loads:
            if load.fails:
                self.failed.append(load)
                continue
            at = load.start
            for fill in load.fills:
                assert fill.start == at, "a gap"
                at = fill.stop
                found = self.entries[fill.entry][fill.origin : fill.origin + at - fill.start]
                run = next(r for r in self.live if tuple(r.blocks) == load.blocks)
                assert list(found) == run.tokens[fill.start : at], "other tokens"
                if fill.behind is not None:
                    assert fill.behind in self.entries
        for save in orders.after:
            run = next(r for r in self.live if tuple(r.blocks) == save.blocks)
            self._save(save, tuple(run.tokens))
            for teach in save.lessons:
                base = self.entries[teach.entry]
                size = teach.stop - teach.start
                assert (
                    list(base[teach.origin : teach.origin + size])
                    == run.tokens[teach.start : teach.stop]
                )
                self.lessons.append(teach.number)
        for ask in orders.asks:
            assert ask.origin + ask.tokens <= len(self.entries[ask.entry])
        for entry in orders.drops:
            self.entries.pop(entry, None)

    def _save(self, save: Save, tokens: tuple[int, ...]) -> None:
        for copy in save.copies:
            assert copy.entry not in self.entries, "written twice"
            self.entries[copy.entry] = tokens[copy.start : copy.stop]

    def tell(self, told: Told, *models: tuple[str, str, str], ranks: int = 1) -> None:
        """All ranks say this of models."""
        for rank in range(ranks):
            self.catalogue.heard(Facts(models={rank: dict.fromkeys(models, told)}))

    def check(self) -> None:
        """What holds between any two requests."""
        names = self.catalogue.names
        assert names.used == sum(map(len, self.entries.values())), "bytes are not what there is"
        assert names.used <= names.budget
        assert self.catalogue.rows.pinned <= sum(count > 0 for count in self.used.values())
