"""Retrieval by BM25: the right passages, in order, from a corpus or from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks.retrieval import NOTHING, best, bm25_retriever, passages_of

PASSAGES = (
    "Zurich\nZurich lies on a lake in Switzerland.",
    "Spiders\nSpiders have eight legs and eat insects.",
    "Cats\nCats have four legs and sleep all day.",
    "Legs\nTables have legs.",
)


def test_what_shares_most_with_the_question_comes_first() -> None:
    found = best(PASSAGES, "How many legs do spiders have?", 2)
    assert found[0] == PASSAGES[1]
    assert len(found) == 2
    assert best(PASSAGES, "On which lake does Zurich lie?", 1) == [PASSAGES[0]]


def test_words_that_nobody_has_leave_the_order_as_it_is() -> None:
    assert best(PASSAGES, "xylophone quux", 3) == list(PASSAGES[:3])


def test_the_tool_sends_its_passages_one_by_one() -> None:
    tool = bm25_retriever(2)
    corpus = "\n\n".join(PASSAGES)
    found = tool.texts(tool.run({"task": "Do cats sleep?", "corpus": corpus}))
    assert list(found) == ["passage1", "passage2"]
    assert found["passage1"] == PASSAGES[2]


def test_fewer_passages_than_outputs() -> None:
    found = bm25_retriever(3).run({"task": "Do cats sleep?", "corpus": PASSAGES[2]})
    assert list(found) == [PASSAGES[2], NOTHING, NOTHING]


def test_without_a_corpus_it_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="needs the input `corpus`, or a folder"):
        bm25_retriever(1).run({"task": "x"})


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "cats.md").write_text("Cats sleep.\n\nThey have four legs.")
    (tmp_path / "long.txt").write_text("\n\n".join("word " * 70 for _ in range(3)))
    (tmp_path / "image.png").write_bytes(b"\xff")
    passages = passages_of(tmp_path)
    assert passages[0] == "cats\nCats sleep.\nThey have four legs."
    assert [len(text.split()) for text in passages[1:]] == [141, 71]
    tool = bm25_retriever(1, folder=tmp_path)
    assert list(tool.run({"task": "Do cats sleep?"})) == [passages[0]]


def test_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no text"):
        bm25_retriever(1, folder=tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read"):
        bm25_retriever(1, folder=tmp_path)


def test_without_bm25s_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'kvcomm\[tasks\]'"):
        bm25_retriever()
