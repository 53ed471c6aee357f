"""What every engine promises: `kvcomm.engine.base.Engine` as tests.

class TestMine(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return mine()

`reference` is the same model in this process, in a type in which equal means equal.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kvcomm.engine.base import (
    AHEAD,
    READY,
    Answer,
    CallSpec,
    Engine,
    EngineSequence,
    Token,
    Variant,
)
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import ContextOverflow, KvcommError, ReuseRefused
from kvcomm.graphs import AgentGraph, chain, debate
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.policy import Dense, Kvcomm, Policy, ReuseOptions
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.result import Result
from kvcomm.sampling import Sampling
from kvcomm.session import Session
from tests.engine.support import generate
from tests.runtime.support import agent, session

DENSE = Dense("test")
TEXT = (
    "Three spiders met on a wall and counted their legs, one after the other, and when they were "
    "done they counted again, because no two of them had come to the same number. "
)
TASK = "How many legs do three spiders have, and how many two beetles?"
_names = (f"conformance-{i}" for i in itertools.count())


def graphs(tokens: int) -> dict[str, AgentGraph]:
    return {
        "chain": chain(agent("a", tokens), agent("b", tokens), agent("c", tokens)),
        "debate": debate(agent("a", tokens), agent("b", tokens // 2), judge=agent("j", tokens)),
    }


class EngineContract:
    """Tests that each implementation inherits; all it says is how its engine is made.

    `tokens` is the length of messages in whole graphs, `task` what they are about. Of 40 leading
    tokens of a message at least so many are computed `ahead` of its end. Prefixes are found in
    blocks of `block` tokens.
    """

    tokens = 70
    ahead = 40
    block = 16
    task = TASK

    @pytest.fixture
    def engine(self) -> Engine:
        raise NotImplementedError

    @pytest.fixture
    def reference(self, tiny: LocalEngine) -> LocalEngine:
        return tiny

    async def test_a_sequence_grows_to_the_prompt(self, engine: Engine) -> None:
        ids = prompt(engine, 90)
        seq = engine.open(call(120))
        assert (seq.length, seq.exact) == (0, True)
        done = await seq.extend(pieces(ids, 40), DENSE)
        assert seq.length == 90
        assert [piece.computed + piece.prefix for piece in done.segments] == [40, 40, 10]
        assert all(piece.reason and not piece.realigned for piece in done.segments)
        assert (done.decision, done.dense, done.base_tokens) == ("test", True, 0)
        await seq.close()

    async def test_greedy_tokens_are_the_references(
        self, engine: Engine, reference: LocalEngine
    ) -> None:
        for length in (1, 33, 150):
            ids = prompt(engine, length)
            assert await answered(engine, ids, 12) == generate(reference, ids, 12)

    @pytest.mark.parametrize("priority", [READY, AHEAD])
    async def test_however_extended_the_answer_is_one(self, engine: Engine, priority: int) -> None:
        ids = prompt(engine, 200)
        seq = engine.open(call(230, prefix=priority == AHEAD, priority=priority))
        *first, last = pieces(ids, 48)
        for piece in first:
            await seq.extend([piece], DENSE, settle=False)
            await asyncio.sleep(0)
        seq.set_priority(READY)
        await seq.extend([last], DENSE, last=Answer(Sampling(max_tokens=10)))
        tokens = await tokens_of(seq)
        await seq.close()
        assert texts(tokens) == await answered(engine, ids, 10)
        assert [token.at for token in tokens] == sorted(token.at for token in tokens)
        assert [token.last for token in tokens[:-1]] == [None] * (len(tokens) - 1)
        assert tokens[-1].last in ("stop", "length")

    async def test_a_stop_token_ends_the_answer(self, engine: Engine) -> None:
        ids = prompt(engine, 40)
        plain = await answered(engine, ids, 8)
        at = next(i for i in range(1, 8) if plain[i] not in plain[:i])
        seq = engine.open(call(60))
        tokens = await tokens_of(seq, ids, 8, stop_token_ids=(plain[at],))
        await seq.close()
        assert texts(tokens) == plain[:at]
        assert (tokens[-1].id, tokens[-1].last) == (plain[at], "stop")

    async def test_sampling_is_repeatable_by_its_seed(self, engine: Engine) -> None:
        ids = prompt(engine, 40)
        hot = Sampling(temperature=1.0, top_p=0.95, max_tokens=16)
        runs = [await answered(engine, ids, 16, Answer(hot, seed)) for seed in (7, 7, 2**62 + 1)]
        assert runs[0] == runs[1] != runs[2]

    async def test_what_is_not_settled_can_be_taken_back(self, engine: Engine) -> None:
        right, wrong = prompt(engine, 150), prompt(engine, 100, start=5)
        seq = engine.open(call(300, prefix=True, priority=AHEAD))
        await seq.extend(pieces(right[:20], 20), DENSE)
        await seq.extend(pieces(wrong, 100), DENSE, settle=False)
        await seq.truncate(50)
        await seq.truncate(20)
        assert seq.length == 20
        seq.set_priority(READY)
        assert texts(await tokens_of(seq, right[20:], 8)) == await answered(engine, right, 8)
        await seq.close()

    async def test_an_answer_can_be_ended_before_its_end(self, engine: Engine) -> None:
        seq = engine.open(call(500))
        await seq.extend(
            pieces(prompt(engine, 40), 40), DENSE, last=Answer(Sampling(max_tokens=400))
        )
        tokens = seq.answer()
        for _ in range(3):
            assert not (await anext(tokens)).last
        await tokens.aclose()
        await seq.stop(2)
        await seq.finish()
        await seq.close()
        await engine.drain()

    async def test_a_sequence_grows_beyond_its_capacity_to_the_context(
        self, engine: Engine
    ) -> None:
        ids = prompt(engine, 300)
        seq = engine.open(call(20))
        await seq.extend(pieces(ids[:10], 10), DENSE)
        big = prompt(engine, engine.max_context)
        with pytest.raises(ContextOverflow, match="context"):
            await seq.extend(pieces(big, len(big)), DENSE)
        assert seq.length == 10
        assert texts(await tokens_of(seq, ids[10:], 6)) == await answered(engine, ids, 6)
        await seq.close()

    def test_what_cannot_fit_is_not_opened(self, engine: Engine) -> None:
        for refuse in (engine.check, engine.open):
            with pytest.raises(ContextOverflow, match="1 more than the context"):
                refuse(call(engine.max_context + 1))
        engine.check(call(engine.max_context))

    async def test_many_sequences_at_once_answer_as_each_alone_does(self, engine: Engine) -> None:
        prompts = [prompt(engine, 20 + 7 * i, start=i) for i in range(8)]
        together = await asyncio.gather(*(answered(engine, ids, 8) for ids in prompts))
        assert together == [await answered(engine, ids, 8) for ids in prompts]

    async def test_a_cancelled_answer_harms_nobody(self, engine: Engine) -> None:
        ids = prompt(engine, 60)
        started = asyncio.Event()

        async def interrupted() -> None:
            seq = engine.open(call(500))
            try:
                await seq.extend(pieces(ids, 60), DENSE, last=Answer(Sampling(max_tokens=400)))
                async for _ in seq.answer():
                    started.set()
            finally:
                await asyncio.shield(seq.close())

        beside = asyncio.create_task(answered(engine, ids, 30))
        task = asyncio.create_task(interrupted())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        expected = await beside
        assert await answered(engine, ids, 30) == expected

    async def test_sequences_are_closed_twice_at_any_moment(self, engine: Engine) -> None:
        for moment in ("empty", "filled", "answering", "answered"):
            seq = engine.open(call(300, prefix=True, priority=AHEAD))
            if moment != "empty":
                await seq.extend(pieces(prompt(engine, 90), 90), DENSE)
            if moment.startswith("answer"):
                asked = Answer(Sampling(max_tokens=100 if moment == "answering" else 3))
                await seq.extend(pieces(prompt(engine, 5), 5), DENSE, last=asked)
            if moment == "answered":
                await tokens_of(seq)
            await seq.close()
            await seq.close()
        await engine.drain()
        assert len(await answered(engine, prompt(engine, 30), 4)) <= 4

    async def test_a_call_that_fails_harms_nobody(self, engine: Engine) -> None:
        ids = prompt(engine, 60)
        beside = engine.open(call(100, prefix=True))
        await beside.extend(pieces(ids[:40], 40), DENSE)
        broken = engine.open(call(100))
        with pytest.raises(Exception):  # noqa: B017
            await tokens_of(broken, [1 << 40], 4)  # no such token
        await broken.close()
        assert texts(await tokens_of(beside, ids[40:], 8)) == await answered(engine, ids, 8)
        await beside.close()

    @pytest.mark.parametrize("mode", ["dense", "exact", "kvcomm", "auto"])
    @pytest.mark.parametrize("name", ["chain", "debate"])
    async def test_whole_graphs_say_what_the_reference_says(
        self, engine: Engine, reference: LocalEngine, name: str, mode: str
    ) -> None:
        graph, able = graphs(self.tokens)[name], engine.capabilities
        if mode in refused(engine):
            with pytest.raises(ReuseRefused, match="cannot reuse KV"):
                session(engine, mode)
            return
        with fresh(reference, "dense") as active:
            expected = await active.arun(graph, self.task)
        with fresh(engine, mode) as active:
            result = await active.arun(graph, self.task)
        assert {c.node: c.text for c in result.calls} == {c.node: c.text for c in expected.calls}
        check_usage(result)
        if mode == "dense" or not able.exact:
            assert result.totals.reused_tokens == 0
            assert all(not c.total("ahead") for c in result.calls if c.node != "a")
        elif mode == "exact":
            assert result.calls[-1].total("ahead") > 0

    @pytest.mark.parametrize("mode", ["dense", "exact", "kvcomm", "auto"])
    async def test_a_chat_says_the_same(
        self, engine: Engine, reference: LocalEngine, mode: str
    ) -> None:
        if mode in refused(engine):
            return
        graph = graphs(self.tokens)["chain"]
        said = []
        for asked, how in ((reference, "dense"), (engine, mode)):
            with fresh(asked, how) as active:
                chat = active.chat(graph)
                turns = [await chat.arun(task) for task in (self.task, "And one of each?")]
            said.append([{call.node: call.text for call in turn.calls} for turn in turns])
        assert said[0] == said[1]
        first, second = turns
        check_usage(second)
        if mode == "dense" or not engine.capabilities.exact:
            assert second.totals.reused_tokens == 0
        elif mode == "exact":
            for call in second.calls:
                # Servers keep whole blocks.
                assert (
                    call.total("prefix") > first.call(call.node).report.prompt_tokens - self.block
                )

    async def test_an_input_that_one_agent_has_read_others_realign(self, engine: Engine) -> None:
        if not engine.capabilities.reuse:
            seq = engine.open(call(60))
            with pytest.raises(KvcommError, match="cannot reuse KV"):
                await seq.extend(pieces(prompt(engine, 40), 20), Kvcomm())
            await seq.close()
            return
        policy = Realign(Recipe("rotate"), borrows=True)
        with fresh(engine, policy) as active:
            result = await active.arun(graphs(self.tokens)["chain"], self.task)
        check_usage(result)
        lenders = [step.lender for c in result.calls for step in c.steps if step.name == "task"]
        assert lenders == ["", "a", "a"]
        assert result.totals.extra["base"] == 0

    async def test_of_a_message_some_is_computed_while_it_is_written(self, engine: Engine) -> None:
        if not engine.capabilities.reuse:
            seq = engine.open(call(60))
            (rest,) = pieces(prompt(engine, 40), 40)
            await seq.extend([replace(rest, ids=rest.ids[:30])], DENSE, settle=False)
            done = await seq.extend([replace(rest, done=30)], DENSE)
            assert (seq.length, done.segments[0].computed) == (40, 10)
            await seq.close()
            return

        class Late(Realign):
            def leading(self, tokens: int, most: int) -> int:
                return 0

        recipe, found = Recipe("lead", first=40), []
        for policy in (Late(recipe, borrows=True), Realign(recipe, borrows=True)):
            with fresh(engine, policy) as active:
                found.append(await active.arun(graphs(self.tokens)["chain"], self.task))
        late, early = found
        check_usage(early)
        assert [c.text for c in early.calls] == [c.text for c in late.calls]
        slow, fast = (result.call("b") for result in found)
        assert fast.report.prompt_tokens == slow.report.prompt_tokens
        heard, same = (next(s for s in call.steps if s.name == "a") for call in (slow, fast))
        assert heard.positions == same.positions
        if same.tokens <= 60:  # a model that says little: its message is computed
            assert not same.realigned
            return
        assert same.positions[0] == (0, 40)
        assert heard.computed == same.computed < same.tokens
        assert heard.ahead == 0
        assert self.ahead <= same.ahead <= 40

    async def test_prompts_are_compared_with_dense_if_there_is_reuse(self, engine: Engine) -> None:
        text = Segment("placeholder", "text", tuple(prompt(engine, 40, start=3)), index=1)
        segments = [*pieces(prompt(engine, 30), 30), text]
        made = replace(call(100), template=Template((segments[0].ids, ()), ("text",), "test"))
        variants = [Variant(DENSE), Variant(Realign(Recipe("rotate")))]
        if not engine.capabilities.reuse:
            with pytest.raises(KvcommError, match="cannot reuse KV"):
                await engine.evaluate(made, segments, variants)
            return
        found = await engine.evaluate(made, segments, variants)
        dense, moved = found.variants
        assert (dense.dense, dense.divergence, dense.tokens) == (True, None, 0)
        assert moved.divergence is not None
        assert moved.divergence.mean > 0
        assert moved.segments[1].realigned == 39  # the prompt's last token is computed
        assert found.tokens >= 70


def fresh(engine: Engine, reuse: str | Policy) -> Session:
    """A session in a namespace of its own: no earlier run has left anything to reuse."""
    options = {"target_divergence": 0.0} if reuse == "auto" else {}
    return session(engine, reuse, namespace=next(_names), **options)


def refused(engine: Engine) -> set[str]:
    able = engine.capabilities
    return ({"kvcomm"} if not able.reuse else set()) | ({"exact"} if not able.exact else set())


def check_usage(result: Result) -> None:
    """Every prompt token has come from somewhere."""
    for done in result.calls:
        for step in done.steps:
            assert step.computed + step.prefix + step.realigned == step.tokens
            assert min(step.computed, step.prefix, step.realigned) >= 0
            assert 0 <= step.ahead <= step.tokens
            assert step.reason
        assert sum(step.tokens for step in done.steps) == done.report.prompt_tokens
    totals = result.totals
    assert totals.computed_tokens + totals.reused_tokens == totals.prompt_tokens


def prompt(engine: Engine, length: int, start: int = 0) -> list[int]:
    text = TEXT[start:] + TEXT * (1 + length // 20)
    return engine.codec.encode(text)[:length]


def pieces(ids: Sequence[int], size: int) -> list[Segment]:
    return [
        Segment("literal", f"literal {n}", tuple(ids[i : i + size]), index=n)
        for n, i in enumerate(range(0, len(ids), size))
    ]


def call(capacity: int, *, prefix: bool = False, priority: int = READY) -> CallSpec:
    """A call without a template, that uses the prefix cache or not."""
    return CallSpec(
        node="n",
        template=Template(((),), (), "test"),
        capacity=capacity,
        reuse=ReuseOptions(reads_prefix=prefix, feeds_prefix=prefix),
        namespace=next(_names),
        priority=priority,
    )


async def tokens_of(
    seq: EngineSequence, ids: Sequence[int] = (), count: int = 0, **sampling: Any
) -> list[Token]:
    """All tokens of the answer, to what is there and these ids."""
    if ids:
        asked = Answer(Sampling(max_tokens=count, **sampling))
        await seq.extend(pieces(ids, len(ids)), DENSE, last=asked)
    return [token async for token in seq.answer()]


def texts(tokens: Sequence[Token]) -> list[int]:
    """The ids, a final stop token left out."""
    return [token.id for token in tokens if token.last != "stop"]


async def answered(
    engine: Engine, ids: Sequence[int], count: int, asked: Answer | None = None
) -> list[int]:
    seq = engine.open(call(len(ids) + count))
    try:
        asked = asked or Answer(Sampling(max_tokens=count))
        await seq.extend(pieces(ids, len(ids)), DENSE, last=asked)
        return texts(await tokens_of(seq))
    finally:
        await seq.close()
