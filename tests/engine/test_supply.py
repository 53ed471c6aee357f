"""What a client knows of a server's KV, and how a plan becomes requests."""

from __future__ import annotations

from itertools import pairwise
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.engine.served.audit import compare
from kvcomm.engine.served.realigned import GrowingRow, visible
from kvcomm.engine.served.supply import Named, Supply, handle_of, new_name, pieces_of
from kvcomm.reuse.auto import LEVELS
from kvcomm.reuse.policy import Dense
from kvcomm.reuse.recipe import Realign
from kvcomm.vllm.protocol import Piece, Reply, Request

A, B = new_name(), new_name()


def named(*places: int | None, name: str = A) -> Named:
    return Named(name, places, "message")


def let_go(supply: Supply) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and rows that the next request lets go of."""
    told = Request.from_json(supply.params(Request())["kv_transfer_params"])
    assert told is not None
    return told.release, told.ends


def test_pieces_are_as_long_as_what_they_come_from() -> None:
    text = named(7, 8, 9, None, 20, 21)
    assert text.covered == (0, 1, 2, 4, 5)
    assert pieces_of(text, 100, text.covered, None, 1.0) == [
        Piece(100, 103, A, 7),
        Piece(104, 106, A, 20),
    ]
    assert pieces_of(text, 100, (1, 2), ("linear", "t", "x"), 0.5) == [
        Piece(101, 103, A, 8, ("linear", "t", "x"), 0.5)
    ]
    assert handle_of("k", text).covered == ((0, 3), (4, 6))


@given(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 9))
def test_pieces_fill_just_the_positions(positions: set[int], begin: int) -> None:
    text = named(*range(3, 44))
    found = pieces_of(text, begin, sorted(positions), None, 1.0)
    assert {i for piece in found for i in range(piece.start, piece.stop)} == {
        begin + position for position in positions
    }
    assert all(piece.origin == piece.start - begin + 3 for piece in found)
    assert all(one.stop < two.start for one, two in pairwise(found))


def test_a_request_ends_where_a_computed_stretch_is_followed_by_a_piece() -> None:
    row = GrowingRow(
        pieces=[Piece(0, 10, A), Piece(15, 30, A, 15), Piece(30, 40, B), Piece(45, 50, B)]
    )
    assert row.stops(60) == [15, 45]
    assert row.stops(20) == [15]
    assert [(p.start, p.stop) for p in row.within(35)] == [(0, 10), (15, 30), (30, 35)]
    row.reached(1.0, 15, 10)
    assert row.stops(60) == [45]
    row.reached(2.0, 45, 40)
    row.reached(3.0, 60, 50)
    assert [(a.tokens, a.computed) for a in row.arrivals] == [
        (10, 0),
        (5, 5),
        (25, 0),
        (5, 5),
        (5, 0),
        (10, 10),
    ]
    assert row.again == row.missed == 0


def test_what_was_not_supplied_was_computed() -> None:
    row = GrowingRow(pieces=[Piece(0, 10, A), Piece(20, 40, A, 20)])
    row.reached(1.0, 20, 0)
    assert [(a.tokens, a.computed) for a in row.arrivals] == [(20, 20)]
    assert row.missed == 10
    row.reached(2.0, 50, 15)  # not even all that was there
    assert row.again == 5
    assert row.missed == 10 + 20
    assert sum(arrival.tokens for arrival in row.arrivals) == 50


def test_a_prompt_that_is_taken_back_gets_another_row() -> None:
    row = GrowingRow(pieces=[Piece(0, 10, A), Piece(15, 30, A, 15)])
    row.reached(1.0, 15, 10)
    assert row.cut(20) is row
    assert row.pieces[-1].stop == 20
    other = row.cut(12)
    assert other.name != row.name
    assert (other.grown, other.again, len(other.pieces)) == (0, 15, 1)


def test_names_are_let_go_of_once() -> None:
    supply = Supply("model")
    supply.add("one", named(0, 1))
    supply.add("one", named(0, 1, name=B))
    assert let_go(supply) == ((A,), ())
    assert let_go(supply) == ((), ())
    message = named(5, name=new_name())
    message.readers = 2
    supply.add("two", message)
    supply.release("two")
    assert supply.get("two") is message
    supply.release("two")
    assert supply.get("two") is None
    assert let_go(supply) == ((message.name,), ())


def test_what_the_server_says_is_taken_in() -> None:
    supply = Supply("model")
    supply.add("one", named(0, 1))
    model = ("linear", "t", "passage~read")
    assert supply.says(model).samples == 0
    supply.heard(Reply(missing=(A,), models={" ".join(model): (True, "12 samples", 12, 0.4)}))
    assert supply.get("one") is None
    assert let_go(supply) == ((), ())  # the server has let go of it already
    assert (supply.says(model).shareable, supply.says(model).error) == (True, 0.4)
    supply.heard(None)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_planned_by_what_only_a_local_engine_sees(level: object) -> None:
    policy = Realign(level, "why", 0.4, borrows=True)  # type: ignore[arg-type]
    seen = visible(policy)
    assert isinstance(seen, Realign)
    assert (seen.recipe.deviating, seen.recipe.query) == (0, False)
    share = policy.recipe.leading + policy.recipe.deviating
    assert seen.recipe.leading == pytest.approx(share)
    assert (seen.reason, seen.budget, seen.options) == ("why", 0.4, policy.options)


def test_other_policies_stay_as_they_are() -> None:
    dense = Dense("why")
    assert visible(dense) is dense


def test_divergences_put_what_is_not_named_into_one_bin() -> None:
    dense = [{1: log(0.5), 2: log(0.3)}, {1: log(0.9)}]
    same = compare([1, 1], dense, dense)
    assert same.mean == pytest.approx(0, abs=1e-12)
    assert (same.top1, same.same_text) == (1.0, True)
    other = compare([1, 1], dense, [{1: log(0.2), 2: log(0.6)}, {1: log(0.9)}])
    expected = 0.5 * log(0.5 / 0.2) + 0.3 * log(0.3 / 0.6)
    assert other.first == pytest.approx(expected)
    assert other.mean == pytest.approx(expected / 2)
    assert (other.top1, other.same_text) == (0.5, False)


@given(
    st.lists(st.floats(0.001, 1), min_size=6, max_size=6),
    st.lists(st.floats(0.001, 1), min_size=6, max_size=6),
    st.integers(1, 5),
)
def test_bins_only_make_divergences_smaller(one: list[float], two: list[float], n: int) -> None:
    one, two = ([x / sum(values) for x in values] for values in (one, two))
    full = sum(p * log(p / q) for p, q in zip(one, two, strict=True))
    dense = [{i: log(p) for i, p in enumerate(one[:n])}]
    other = [{i: log(q) for i, q in enumerate(two[:n])}]
    assert compare([0], dense, other).mean <= full + 1e-9
