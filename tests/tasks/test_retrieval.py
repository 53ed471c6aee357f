"""Retrieval by BM25: the right passages, in order, from a corpus or from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks.retrieval import NOTHING, best, bm25_retriever, paragraphs, passages_of

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


@pytest.mark.parametrize(
    ("passages", "question", "found"),
    [
        (["巴黎是法国的首都。", "罗马是意大利的首都。"], "意大利的首都是哪里？", 1),
        (
            ["パリはフランスの首都です。", "ローマはイタリアの首都です。"],
            "イタリアの首都はどこですか",
            1,
        ),
        (["파리는 프랑스의 수도이다.", "로마는 이탈리아의 수도이다."], "이탈리아 수도는?", 1),
        (
            ["ปารีสเป็นเมืองหลวงของฝรั่งเศส", "โรมเป็นเมืองหลวงของอิตาลี"],
            "เมืองหลวงของอิตาลีคืออะไร",
            1,
        ),
        (["维生素D在这里。", "维生素C在这里。"], "维生素C是什么？", 1),
        (["O型の人です。", "A型の人です。"], "A型の性格は", 1),
        (["日本は島国です。", "本日は休みです。"], "本日の予定", 1),
        (["Vitamin D is there", "Vitamin C is here"], "vitamin C", 1),
        (["Vitamin D is there", "Vitamin A is here"], "What is vitamin A good for?", 1),
        (["Plan A: we go.", "Plan B: we stay."], "what is plan b", 1),
        (["C# has classes.", "C++ has templates."], "Who made C++?", 1),
        (["Apollo 8 flew.", "Apollo 9 flew."], "Apollo 9", 1),
        (["Der Fluß ist tief.", "Das STRASSENNETZ, die Straße"], "strasse", 1),
        (["باريس هي عاصمة فرنسا", "روما هي عاصمة إيطاليا"], "ما هي عاصمة إيطاليا؟", 1),
        (["पेरिस फ्रांस की राजधानी है।", "रोम इटली की राजधानी है।"], "इटली की राजधानी क्या है?", 1),
        (["פריז היא בירת צרפת", "רומא היא בירת איטליה"], "בירת איטליה", 1),
        (["ፓሪስ የፈረንሳይ ዋና ከተማ ነው", "ሮም የጣሊያን ዋና ከተማ ነው"], "የጣሊያን ዋና ከተማ", 1),
        (["Το Παρίσι είναι στη Γαλλία", "Η Ρώμη είναι στην Ιταλία"], "ΡΏΜΗ", 1),
        (["İstanbul büyük", "İzmir güzel"], "izmir", 1),
        (["İstanbul büyük", "izmir güzel"], "İZMİR", 1),
        (["第3条。", "第5条。"], "第５条", 1),
        (["2D films", "3D films"], "in 3D", 1),
        (["Article 15 says no.", "Article 5 says yes."], "What does Article 5 say?", 1),
        (["Group II metals", "Group I metals"], "group I", 1),
        (["H2O is water.", "CO2 is a gas."], "CO₂", 1),
        (["🍎 is red.", "🍌 is yellow."], "🍌?", 1),
        (["$5 at least", "€5 at least"], "€5", 1),
        (["a ∩ b", "a ∪ b"], "∪", 1),
    ],
)
def test_words_of_every_script_and_length(passages: list[str], question: str, found: int) -> None:
    assert best(passages, question, 1) == [passages[found]]


def test_a_passage_without_words_is_not_what_an_unknown_word_asks_for() -> None:
    assert best(["Cats sleep.", "..."], "xylophone", 1) == ["Cats sleep."]


def test_nothing_is_found_in_nothing() -> None:
    assert best([], "x", 3) == []
    assert list(bm25_retriever(2).run({"task": "x", "corpus": "\n\n"})) == [NOTHING, NOTHING]


def test_words_that_nobody_has_leave_the_order_as_it_is() -> None:
    assert best(PASSAGES, "xylophone quux", 3) == list(PASSAGES[:3])


@pytest.mark.parametrize(
    "text",
    [
        "a\n\nb",
        "a\r\n\r\nb",
        "a\r\rb",
        "a\n \t\nb",
        "a\r\n\t\r\n \r\nb\r\n",
        "a\n\u3000\xa0\nb",
        "a\n\v\nb",
        "a\fb",
        "a\n\fb",
        "a\u2029b",
        "a\x85\x85b",
        "\ufeffa\n\u200b\nb\u200b",
        "a\n\u2060\u200e\nb\u200f",
        "a\n\xad\nb",
    ],
)
def test_paragraphs_end_at_blank_lines_however_they_are_written(text: str) -> None:
    assert paragraphs(text) == ("a", "b")


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\rb", "a\u2028b"])
def test_a_line_is_no_paragraph(text: str) -> None:
    assert paragraphs(text) == ("a\nb",)


def test_a_corpus_from_windows_is_searched_passage_by_passage() -> None:
    corpus = "\r\n\r\n".join(PASSAGES)
    assert list(bm25_retriever(1).run({"task": "Do cats sleep?", "corpus": corpus})) == [
        PASSAGES[2]
    ]


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


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_bytes("\ufeffCats sleep.\r\n\r\nDogs bark.\r\n".encode())
    (tmp_path / "two.md").write_bytes("\ufeffOne.\n\n\ufeffTwo.".encode())
    (tmp_path / "wide.txt").write_text("Three.\n\nFour.", encoding="utf-16", newline="\r\n")
    assert passages_of(tmp_path) == (
        "cats\nCats sleep.\nDogs bark.",
        "two\nOne.\nTwo.",
        "wide\nThree.\nFour.",
    )


def test_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no text"):
        bm25_retriever(1, folder=tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xff")
    with pytest.raises(UsageError, match="cannot read"):
        bm25_retriever(1, folder=tmp_path)


def test_without_bm25s_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "kvcomm\[tasks\]"'):
        bm25_retriever()
