"""The words that a search compares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.retrieval import words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Vitamin C, type 2", ["vitamin", "c", "type", "2"]),
        ("On which lake does Zurich lie?", ["which", "lake", "does", "zurich", "lie"]),
        ("Zurich's lake isn't O’Brien’s", ["zurich", "lake", "isn", "o", "brien"]),
        ("C++ or C# in C", ["c", "c++", "c", "c#", "c"]),
        ("snake_case 3.5", ["snake", "case", "3", "5"]),
        ("ＡＢＣ Straße ﬁn", ["abc", "strasse", "fin"]),
        ("Пётр и Вера", ["пётр", "и", "вера"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("巴黎。罗马", ["巴", "黎", "巴黎", "罗", "马", "罗马"]),
        (
            "東京タワー is 333 m",
            ["東", "京", "タ", "ワ", "ー", "東京", "京タ", "タワ", "ワー", "333", "m"],
        ),
        ("血液A型", ["血", "液", "血液", "a", "型"]),
        ("维生素C", ["维", "生", "素", "维生", "生素", "c"]),
        ("서울은", ["서", "울", "은", "서울", "울은"]),
        ("ไทย ดี", ["ไ", "ท", "ย", "ไท", "ทย", "ดี"]),
        ("الرِّيـــاض", ["الرياض"]),
        ("שָׁלוֹם־עֲלֵיכֶם", ["שלום", "עליכם"]),
        ("co\xadop", ["coop"]),
        ("İzmir, ½ → 🍌", ["izmir", "1", "2", "→", "🍌"]),
        ("... !?", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "word"),
    [
        *((text, True) for text in ("Vitamin A is here", "vitamin  A", "Who needs vitamin a?")),
        *((text, False) for text in ("A dog. A cat has a hat.", "a\ndog", "Is it a dog?")),
        ("Plan A", True),
    ],
)
def test_an_article_is_no_word_and_a_letter_is_one(text: str, word: bool) -> None:
    assert ("a" in words_of(text)) == word


def test_small_words_in_capitals_are_names() -> None:
    assert words_of("The IT department, and it is OR") == ["it", "department", "or"]
    assert words_of("THIS IS NOT IT") == []


@given(st.text())
def test_any_text_has_words(text: str) -> None:
    assert all(words_of(text))


@pytest.mark.parametrize("part", ["a ", "A-", "\n", "'s", "ก", "漢", "\u0301", "x\u0301", "C++"])
def test_long_texts_of_one_kind(part: str) -> None:
    words_of(part * 100_000)
