"""Base KV is made within the budget; where there is no room for it, its text is computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kvcomm.engine import loop as loop_module
from kvcomm.engine.base import Call, Survey
from kvcomm.engine.bases import NO_ROOM
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import OutOfMemory
from kvcomm.prompt import Template
from kvcomm.reuse.policy import Kvcomm
from tests.engine.support import COMPUTE, answer, decode, generate, ids_of, random_ids

TEMPLATE = Template((tuple(range(20, 45)), tuple(range(60, 69))), ("task",), "of the bases")
ROW = 120


@pytest.fixture
def limited(tiny: LocalEngine) -> Iterator[LocalEngine]:
    """The tiny engine, whose limit a test may change."""
    limit = tiny.budget.limit
    yield tiny
    tiny.budget.limit = limit


async def surveyed(engine: LocalEngine, tokens: int = 17) -> tuple[Survey, list[int]]:
    """What a call with an input learns; and its answer, all of it computed."""
    task = tuple(random_ids(engine, tokens))
    call = Call("n", TEMPLATE, ROW, reads_prefix=False, offsets="anchors")
    seq = await engine.enter(call)
    try:
        survey = await seq.survey(TEMPLATE.fill({"task": task}))
        await seq.extend(survey.segments, [COMPUTE] * 3, answer=answer(8))
        said = ids_of(await decode(seq))  # type: ignore[arg-type]
    finally:
        await seq.close()
    assert said == generate(engine, [i for s in survey.segments for i in s.ids], 8)
    return survey, said


async def test_the_row_of_a_base_has_its_place_in_the_budget(
    limited: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = loop_module.packed_forward, list[tuple[int, int]]()

    def spy(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        seen.append((len(packed), limited.room.used // limited.slot_bytes))
        return real(model, packed, *rest)

    monkeypatch.setattr(loop_module, "packed_forward", spy)
    survey, _ = await surveyed(limited)
    header = len(limited.bases.header)
    assert seen[:2] == [(34, ROW + 34), (header + 17, ROW + header + 17)]
    assert survey.base_tokens == 34 + header + 17
    assert all(fact.covered for fact in survey.facts)
    assert limited.room.used == 0


@pytest.mark.parametrize("slots", [ROW, ROW + 30])
async def test_without_room_the_text_is_computed_and_the_reason_says_so(
    limited: LocalEngine, slots: int
) -> None:
    limited.budget.limit = slots * limited.slot_bytes
    survey, _ = await surveyed(limited)
    assert survey.base_tokens == 0
    assert [(fact.covered, fact.absent) for fact in survey.facts] == [((), NO_ROOM)] * 3
    plan = Kvcomm().plan(survey.facts)
    assert plan.gate == "dense: {task}: no room for its base KV"
    assert limited.room.used == 0


async def test_what_the_store_could_not_keep_is_not_computed(limited: LocalEngine) -> None:
    """The store has an eighth: room for the literals, and for no long text."""
    limited.budget.limit = 8 * 40 * limited.slot_bytes
    survey, _ = await surveyed(limited, tokens=60)
    literal, task, _ = survey.facts
    assert literal.covered
    assert (task.covered, task.absent) == ((), NO_ROOM)
    assert survey.base_tokens == 34


async def test_a_base_for_which_memory_has_run_out_is_done_without(
    limited: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = limited.new_row

    def scarce(capacity: int) -> object:
        if capacity != ROW:
            raise OutOfMemory("opening a row")
        return make(capacity)

    monkeypatch.setattr(limited, "new_row", scarce)
    survey, _ = await surveyed(limited)
    assert [fact.absent for fact in survey.facts] == [NO_ROOM] * 3
    assert limited.room.used == 0


@pytest.mark.parametrize("how", ["new_row", "packed_forward"])
async def test_a_base_that_fails_gives_its_room_back(
    limited: LocalEngine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    make = limited.new_row

    def broken(*args: object) -> object:
        if args == (ROW,):
            return make(ROW)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(limited if how == "new_row" else loop_module, how, broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        await surveyed(limited)
    monkeypatch.undo()
    assert limited.room.used == 0
    assert (await surveyed(limited))[0].base_tokens > 0  # nobody waits for the one that failed


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
async def test_a_row_that_cannot_be_opened_gives_its_room_back(
    limited: LocalEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(capacity: int) -> object:
        raise error

    monkeypatch.setattr(limited, "new_row", broken)
    call = Call("n", TEMPLATE, ROW)
    with pytest.raises(type(error)):
        limited.spare(call)
    with pytest.raises(type(error)):
        await limited.enter(call)
    assert limited.room.used == 0
