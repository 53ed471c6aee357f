"""The prefix cache against a search through every row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.kv import KVBuffer, PrefixCache
from kvcomm.kv.prefix import BLOCK

ROW = KVBuffer(1, 1, 64, 2, torch.float32, torch.device("cpu")).nbytes


def slab() -> KVBuffer:
    return KVBuffer(1, 1, 64, 2, torch.float32, torch.device("cpu"))


def cache_of(rows: int) -> PrefixCache:
    """A cache with room for so many rows."""
    return PrefixCache(lambda: rows * ROW)


def ids(*blocks: int, tail: int = 0) -> list[int]:
    """One block of tokens for each number, and `tail` tokens behind them."""
    return [n * 100 + i for n in blocks for i in range(BLOCK)] + [9] * tail


# --- what enters ---


def test_only_exact_kv_enters_and_only_where_it_fits() -> None:
    cache, small = cache_of(4), PrefixCache(lambda: ROW // 2)
    with pytest.raises(ValueError, match="only exact KV"):
        cache.insert(slab(), ids(1), exact=False)
    small.insert(slab(), ids(1), exact=True)
    assert len(cache) == len(small) == 0


def test_the_ids_of_a_row_are_copied() -> None:
    cache, row, grown = cache_of(4), slab(), ids(1)
    cache.insert(row, grown, exact=True)
    grown += ids(2)
    assert cache.match(ids(1, 2)) == (row, BLOCK)


# --- eviction ---


def test_a_row_that_goes_on_is_kept_whole_like_an_opening() -> None:
    cache = PrefixCache(lambda: 4 * ROW, whole=1 / 4)
    talk, others = slab(), [slab() for _ in range(3)]
    cache.insert(talk, ids(1, 2, tail=3), exact=True, shared=BLOCK, held=True, continues=True)
    cache.leave(talk)
    assert talk.capacity == 2 * BLOCK + 3  # room for the answer is given back
    assert cache.nbytes == talk.nbytes
    for number, row in enumerate(others):
        cache.insert(row, ids(5, 6 + number), exact=True, held=True)
        cache.leave(row)
    assert cache.match(ids(5, 6)) == (others[2], BLOCK)
    assert cache.match(ids(1, 2, tail=3)) == (talk, 2 * BLOCK + 3)


def test_a_longer_row_takes_the_place_of_the_one_it_begins_with() -> None:
    """But not that of another tenant."""
    cache, turns = cache_of(9), [slab() for _ in range(5)]
    rows = [ids(1), ids(1, 2), ids(1, 3), ids(1, 2, 4), ids(1, 2, 4, 5)]
    for row, known, space in zip(turns, rows, ["me"] * 4 + ["you"], strict=True):
        cache.insert(row, known, exact=True, held=True, continues=True, namespace=space)
        cache.leave(row)
        cache.leave(row)
    assert len(cache) == 3  # two of the first four, which part behind the first block
    assert cache.nbytes == sum(row.nbytes for row in turns[2:])
    assert cache.match(ids(1, 2, 4), "me") == (turns[3], 3 * BLOCK)
    assert cache.match(ids(1, 3, 4), "me") == (turns[2], 2 * BLOCK)


# --- against a search through every row ---

# Two kinds of block and three of tail: prefixes meet often.
rows = st.builds(
    lambda blocks, tail: ids(*blocks, tail=tail),
    st.lists(st.integers(1, 2), max_size=3),
    st.integers(0, 3),
)
operations = st.lists(
    st.tuples(st.sampled_from(["new", "grow", "match"]), rows, st.sampled_from(["", "other"])),
    max_size=25,
)


def common(left: list[int], right: list[int]) -> int:
    return max(n for n in range(min(len(left), len(right)) + 1) if left[:n] == right[:n])


@given(steps=operations, room=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_hits_are_the_longest(steps: list, room: int) -> None:
    cache = cache_of(room)
    held: list[tuple[KVBuffer, list[int], str]] = []  # least recently used first
    for what, sequence, namespace in steps:
        if what == "match":
            found = cache.match(sequence, namespace)
            lengths = [common(row, sequence) for _, row, space in held if space == namespace]
            best = max(lengths, default=0)
            assert (found[1] if found else 0) == (best if best >= BLOCK else 0)
            if found:
                used = next(entry for entry in held if entry[0] is found[0])
                assert used[1][: found[1]] == sequence[: found[1]]
                assert used[2] == namespace
                held.remove(used)
                held.append(used)
            continue
        row = slab()
        if what == "grow" and held:
            row, known, namespace = held.pop(0)
            sequence = (known + sequence)[:64]
        cache.insert(row, sequence, exact=True, namespace=namespace)
        held = [*held, (row, sequence, namespace)][-room:]
        assert len(cache) == len(held)
        assert cache.nbytes <= room * ROW


# --- openings ---


def test_who_has_to_go_leaves_its_opening() -> None:
    budget = [ROW]
    cache, first = PrefixCache(lambda: budget[0]), slab()
    first.keys.normal_()
    first.values.normal_()
    keys, values = first.keys.clone(), first.values.clone()
    cache.insert(first, ids(1, 2, 3), exact=True, shared=BLOCK + 5)
    budget[0] = ROW + ROW // 2
    cache.insert(slab(), ids(4, 5), exact=True)
    assert cache.match(ids(1, 2, 3)) == (first, BLOCK)
    assert first.capacity == BLOCK
    assert torch.equal(first.keys, keys[:, :, :BLOCK])
    assert torch.equal(first.values, values[:, :, :BLOCK])
    for part in (first.keys, first.values):
        assert part.untyped_storage().nbytes() == BLOCK * 2 * 4, "the rest of its memory is free"
    assert cache.nbytes <= budget[0]


def test_an_opening_is_kept_once() -> None:
    cache = PrefixCache(lambda: ROW + ROW // 2)
    for tail in range(3, 7):
        cache.insert(slab(), ids(1, 2, tail), exact=True, shared=BLOCK)
    assert len(cache) == 1  # the last row holds the opening, too
    cache.insert(slab(), ids(7), exact=True)
    assert cache.match(ids(1)) is not None
    assert len(cache) == 2


def test_openings_stay_when_rows_go() -> None:
    """Five templates in turns: the second time all openings are there, and no old row."""
    cache = PrefixCache(lambda: 4 * ROW, 1 / 4)
    for number in range(1, 6):
        cache.insert(slab(), ids(number, 8, number), exact=True, shared=BLOCK)
    assert [(cache.match(ids(n, 8, n)) or (0, 0))[1] for n in range(1, 6)] == 4 * [16] + [48]
    assert cache.nbytes == 2 * ROW


def test_openings_go_in_their_turn() -> None:
    cache = PrefixCache(lambda: ROW, 1 / 4)
    for number in range(1, 20):
        cache.insert(slab(), ids(number, 30), exact=True, shared=BLOCK)
        assert cache.nbytes <= ROW
    assert [bool(cache.match(ids(n))) for n in range(1, 20)] == 15 * [False] + 4 * [True]


# --- rows that go on ---


def test_a_row_that_goes_on_costs_nothing_until_it_ends() -> None:
    cache, rows = cache_of(1), [slab() for _ in range(4)]
    for number, row in enumerate(rows):
        cache.insert(row, ids(number), exact=True, held=True)
    assert (len(cache), cache.nbytes) == (4, 0)
    assert [cache.match(ids(n)) for n in range(4)] == [(row, BLOCK) for row in rows]
    cache.leave(rows[0], keep=False)  # nobody wants it any more
    assert (cache.nbytes, cache.match(ids(0))) == (0, None)
    for row in rows[1:]:
        cache.leave(row)
        assert cache.nbytes <= ROW
    assert [cache.match(ids(n)) for n in (1, 2, 3)] == [None, None, (rows[3], BLOCK)]
    cache.leave(rows[1])  # it has gone already
