"""Reading a corpus ahead: what is read, in whose company, what is left out, and what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.tasks.index import build, corpus_of, plan

TEXTS = tuple(f"Passage {n}. " + "words of no use " * (4 + n % 3) for n in range(40))


def test_a_corpus_is_a_folder_or_lines(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text("A first paragraph.\n\nA second one.")
    assert corpus_of(folder) == ("one\nA first paragraph.\nA second one.",)
    lines = [{"title": "Oslo", "text": "A city."}, {"text": " B. "}, {"text": "B."}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert corpus_of(tmp_path / "c.jsonl") == ("Oslo\nA city.", "B.")
    (tmp_path / "bad.jsonl").write_text('{"title": "x"}')
    with pytest.raises(UsageError, match=r"bad.jsonl.* is no passage: it has no `text`"):
        corpus_of(tmp_path / "bad.jsonl")


async def test_every_passage_is_read_behind_another_one(tiny: LocalEngine) -> None:
    index = plan(tiny, TEXTS)
    assert (index.passages, index.known, len(index.groups) > 2) == (40, 0, True)
    assert index.nbytes == index.tokens * tiny.slot_bytes
    heard: list[tuple[int, int]] = []
    computed = await build(tiny, index, lambda done, of: heard.append((done, of)))
    assert heard[-1][0] == heard[-1][1]
    assert computed >= index.tokens
    ids = [tiny.codec.encode(text) for text in TEXTS]
    assert min(tiny.texts.contexts("", one) for one in ids) == 1
    # Now all is known, and a new passage stands behind one of them.
    again = plan(tiny, (*TEXTS, "Something new. " * 9))
    assert (again.known, len(again.groups), len(again.groups[0])) == (40, 1, 2)
    more = plan(tiny, TEXTS, contexts=2)
    assert more.known < 40
    await build(tiny, more)
    assert min(tiny.texts.contexts("", one) for one in ids) >= 2


async def test_an_index_goes_on_where_it_was_killed_and_serves_another_process(
    tmp_path: Path,
) -> None:
    def load() -> LocalEngine:
        return load_engine(  # type: ignore[no-any-return]
            "random:llama-tiny", dtype="float64", device="cpu", kv_cache=tmp_path
        )

    class Killed(Exception):
        pass

    def kill(done: int, of: int) -> None:
        if done > of / 3:
            raise Killed

    with load() as engine:
        first = plan(engine, TEXTS)
        with pytest.raises(Killed):
            await build(engine, first, kill)
    with load() as engine:
        rest = plan(engine, TEXTS)
        assert 0 < rest.known < 40
        assert rest.tokens < first.tokens
        await build(engine, rest)
    with load() as engine:
        assert plan(engine, TEXTS).groups == []


def test_a_passage_beyond_the_context_is_a_clear_error(tiny: LocalEngine) -> None:
    with pytest.raises(UsageError, match="is the most for random:llama-tiny: make smaller"):
        plan(tiny, ["x " * tiny.max_context])
