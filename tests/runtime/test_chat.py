"""Conversations: a turn reads the whole chat, and finds the KV of the turns before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvcomm.agents import Agent, Sampling, Tool
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import ContextOverflow, NodeFailed, UsageError
from kvcomm.graphs import AgentGraph, chain
from kvcomm.runtime.chat import Chat
from kvcomm.runtime.result import Result
from kvcomm.session import Session
from tests.engine.support import generate
from tests.runtime.support import flaky, session

TASKS = (
    "How many legs do three spiders have?",
    "And how many do two of them have together with a cat?",
    "Which of these has more?",
)
LENGTH = 14
SIGN = "@@{}@@"


def speaker(name: str, **fields: Any) -> Agent:
    return Agent(
        name,
        system=f"You are {name}.",
        prompt="{task}\n\n{messages}\n\nGo on.",
        sampling=Sampling(max_tokens=LENGTH),
        **fields,
    )


ONE = chain(speaker("a"))
TWO = chain(speaker("a"), speaker("b"))
FOUND = Tool("search", lambda texts: f"Found: {texts['task'][:12]}")
TOOL = AgentGraph([FOUND, speaker("a"), speaker("b")], [("search", "a"), ("a", "b")])
GRAPHS = {"one": ONE, "two": TWO, "tool": TOOL}


def talk(active: Session, graph: AgentGraph, tasks: Sequence[str] = TASKS) -> list[Result]:
    chat = active.chat(graph)
    return [chat.run(task) for task in tasks]


def ids(result: Result) -> dict[str, list[int]]:
    return {call.node: call.message.ids for call in result.calls}


def conversation(engine: LocalEngine, graph: AgentGraph, node: str, turns: list[Result]) -> Any:
    """The prompt of the last turn, as the model's chat template renders all turns."""
    said: dict[str, tuple[int, ...]] = {}

    def sign(turn: Result, name: str) -> str:
        key = SIGN.format(len(said))
        said[key] = turn.said[name]
        return key

    messages = [{"role": "system", "content": f"You are {node}."}]
    for turn in turns:
        heard = [f"{sender} wrote:\n{sign(turn, sender)}\n\n" for sender in graph.nodes[node].hears]
        asked = f"{sign(turn, 'task')}\n\n{''.join(heard)}Go on."
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": sign(turn, node)})
    tokenizer = engine.codec.tokenizer
    text = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    found: list[int] = []
    for piece in text.split("@@"):
        key = f"@@{piece}@@"
        found += said[key] if key in said else engine.codec.encode_structured(piece)[0]
    return found


def check_turn(engine: LocalEngine, graph: AgentGraph, turns: list[Result]) -> None:
    """The last turn answers all of them."""
    for call in turns[-1].calls:
        prompt = conversation(engine, graph, call.node, turns)
        assert call.report.prompt_tokens == len(prompt)
        assert call.text == engine.codec.decode(generate(engine, prompt, LENGTH))


@pytest.mark.parametrize("name", GRAPHS)
def test_every_turn_answers_the_whole_chat(tiny: LocalEngine, name: str) -> None:
    with session(tiny, "dense") as active:
        turns = talk(active, GRAPHS[name])
    assert not any(turn.totals.reused_tokens for turn in turns)
    assert len(tiny.prefix) == 0
    for number in range(len(turns)):
        check_turn(tiny, GRAPHS[name], turns[: number + 1])


def test_a_turn_begins_with_the_row_of_the_turn_before(smol: LocalEngine) -> None:
    with session(smol, "exact") as active:
        turns = talk(active, TWO)
    for before, turn in pairwise(turns):
        for call in turn.calls:
            earlier = before.call(call.node).report
            row = earlier.prompt_tokens + earlier.output_tokens
            # The last token has no KV where the answer ended by its length.
            assert call.total("prefix") >= row - (earlier.stop == "length")


def test_kvcomm_computes_each_turn_once_more_at_most(tiny: LocalEngine) -> None:
    with session(tiny, "kvcomm") as active:
        turns = talk(active, TWO, TASKS * 2)
    for before, turn in pairwise(turns):
        for call in turn.calls:
            assert call.total("prefix") >= before.call(call.node).report.prompt_tokens
            # Base KV of literals is made of what is new since, not of the whole chat.
            assert call.report.base_tokens < 2 * turns[1].call(call.node).report.base_tokens
    assert any(call.total("realigned") for turn in turns for call in turn.calls)
    # A turn that was computed is found whole: what is made is the base KV of what is new.
    first, second = (turn.call("a").report for turn in turns[:2])
    assert first.dense
    new = second.prompt_tokens - first.prompt_tokens - first.output_tokens
    header = len(tiny.codec.encode_structured(tiny.codec.chat("", "x"))[0])
    assert second.base_tokens <= new + len(tiny.codec.encode(TASKS[1])) + header


def test_what_later_turns_taught_survives(tiny: LocalEngine, tmp_path: Path) -> None:
    """All turns behind the first are of one template."""
    gates = []
    for tasks in (TASKS, TASKS[:2]):
        with session(tiny, "kvcomm", state=tmp_path) as active:
            gates += [turn.call("b").report.gate for turn in talk(active, TWO, tasks)]
        tiny.forget()
    counts = [gate.removeprefix("dense: {task}: ").split()[0] for gate in gates]
    assert counts == ["0", "0", "1", "1", "1"]


FIELDS: dict[str, dict[str, Any]] = {
    "begins": {"begins": "So:"},
    "begins, left out": {"begins": "So:", "keep_begins": False},
    "no turns": {"chat": False},
    "shared-first": {"layout": "shared-first"},
    "shorter messages": {"post": lambda text: text[:5]},
    "other messages": {"post": lambda text: f"[{len(text)}]"},
}


@pytest.mark.parametrize("name", [*FIELDS, "tool"])
def test_whatever_an_agent_is_its_chat_goes_on(tiny: LocalEngine, name: str) -> None:
    fields = FIELDS.get(name, {})
    graph = TOOL if name == "tool" else chain(speaker("a", **fields), speaker("b", **fields))
    with session(tiny, "dense") as dense, session(tiny, "exact") as exact:
        expected, turns = talk(dense, graph), talk(exact, graph)
    assert [ids(turn) for turn in turns] == [ids(turn) for turn in expected]
    for before, turn in pairwise(turns):
        for call in turn.calls:
            prompt = before.call(call.node).report.prompt_tokens
            assert call.total("prefix") >= prompt - len("So:")


def test_a_failed_turn_is_not_part_of_the_chat(tiny: LocalEngine) -> None:
    graph = chain(speaker("a", post=lambda text: post(text)))
    post = str
    with session(tiny, "exact") as active:
        chat = active.chat(graph)
        chat.run(TASKS[0])
        post = flaky(1)
        with pytest.raises(NodeFailed):
            chat.run(TASKS[1])
        assert len(chat.turns) == 1
        assert ids(chat.run(TASKS[1])) == ids(talk(active, graph, TASKS[:2])[1])


async def test_turns_come_one_by_one_and_chats_know_nothing_of_others(tiny: LocalEngine) -> None:
    with session(tiny, "exact") as active:
        chat, other = active.chat(ONE), active.chat(ONE)
        items = [item async for item in chat.astream(TASKS[0])]
        assert chat.turns == [items[-1]]
        stream = chat.astream(TASKS[1])
        await anext(stream)
        with pytest.raises(UsageError, match="another turn of this chat is being answered"):
            await chat.arun(TASKS[1])
        assert ids(await other.arun(TASKS[0])) == ids(await active.arun(ONE, TASKS[0]))
        await stream.aclose()
        assert len(chat.turns) == 1
        again = await chat.arun(TASKS[1])
        assert ids(again) == ids(await other.arun(TASKS[1]))


def test_a_chat_beyond_the_context_says_what_to_do(tiny: LocalEngine) -> None:
    with session(tiny, "exact") as active:
        chat, long = active.chat(ONE), "x" * (tiny.max_context // 2)
        chat.run(long)
        with pytest.raises(ContextOverflow, match=r"turn 2 of the chat .* chat.forget\(1\)"):
            chat.run(long)
        with pytest.raises(UsageError, match="cannot forget 2 of 1 turns"):
            chat.forget(2)
        chat.forget()
        assert chat.turns == []
        chat.run(long)


def test_forgotten_turns_are_not_read_and_a_stream_is_a_turn(tiny: LocalEngine) -> None:
    with session(tiny, "exact") as active:
        chat = active.chat(TWO)
        streamed = [list(chat.stream(task))[-1] for task in TASKS[:2]]
        assert chat.turns == streamed
        assert [*map(ids, streamed)] == [*map(ids, talk(active, TWO, TASKS[:2]))]
        chat.forget(1)
        chat.run(TASKS[2])
        check_turn(tiny, TWO, chat.turns)


def test_a_chat_stays_where_other_rows_have_to_leave(
    engine_of: Callable[..., LocalEngine],
) -> None:
    """In so little memory whole rows may fill less than one turn takes."""
    room = engine_of("random:llama-tiny").slot_bytes * 12_000
    with (
        load_engine("random:llama-tiny", device="cpu", memory=room) as small,
        session(small, "exact") as active,
    ):
        chat = Chat(active, ONE)
        before = chat.run(TASKS[0]).calls[0].report
        for number in range(8):
            active.run(ONE, f"{TASKS[1]} {number}")
        row = before.prompt_tokens + before.output_tokens - 1
        assert row * small.slot_bytes > small.budget.for_prefix() // 10
        assert chat.run(TASKS[1]).calls[0].total("prefix") >= row
