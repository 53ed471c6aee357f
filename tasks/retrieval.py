"""Retrieval by BM25: a tool that finds the passages which bear on a question, by their words.

Words are found in every script, also in those without spaces.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvcomm.agents import Tool
from kvcomm.errors import UsageError
from kvcomm.extras import need
from kvcomm.tasks.rows import read_text
from kvcomm.tasks.task import passage_names

# Passages of a user's files end at the paragraph that brings them to this many words.
WORDS = 120
NOTHING = "(No further passage was found.)"
LINES = re.compile("\r\n?|[\v\x85\u2028]")
PAGES = re.compile("[\f\u2029]")
# No white space, but nothing to see either.
UNSEEN = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
GAPS = re.compile(rf"\n[\s{UNSEEN}]*\n")
# Scripts whose words no space parts (Han, kana, Thai, Lao, Burmese, Khmer), and Hangul, whose words
# carry their endings.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u318f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# What some write and others leave out: vowels of Hebrew and Arabic, its long strokes, soft hyphens.
OPTIONAL = re.compile(
    "[\u00ad\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u065f\u0670]"
)
# Behind an apostrophe: Ada's, don't, we'll.
ENDING = re.compile(r"(?<=\w)['’](?:s|t|d|m|ll|re|ve)\b", re.IGNORECASE)
UNSPACED_SIGN = re.compile(f"[{UNSPACED}]")
# "a" as a name: Vitamin A, "plan a?". The article stands before a word, and is a capital only
# where a sentence begins.
NAME_A = re.compile(r"(?:\w[\s-]+(?=A)|\b(?=[Aa]\b(?!\s*[^\W_])))(?P<name>[Aa])\b")
# "IT" and "OR", in a text that has small letters, too.
CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
ARTICLES_AND_THE_LIKE = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
# Arrows, mathematics, pictures: each is a word.
SIGNS = "\u20a0-\u20cf\u2190-\u2bff\U0001f000-\U0001faff"
STOPWORDS = frozenset(ARTICLES_AND_THE_LIKE.split())
# Signs that stand on other characters, such as the vowels of Hindi and Thai.
MARKS = "".join(c for c in map(chr, range(0x300, 0xFF00)) if unicodedata.category(c)[0] == "M")
LETTER = rf"[^\W_{UNSPACED}]"
WORD = re.compile(
    rf"(?P<run>[{UNSPACED}][{UNSPACED}{MARKS}]*)"
    rf"|(?P<word>[{SIGNS}]|{LETTER}+(?:[{MARKS}]+{LETTER}*)*)(?P<sign>\+\+|#)?"
)
CHARACTER = re.compile(rf"[^\W_][{MARKS}]*")


def bm25_retriever(
    count: int = 4,
    *,
    folder: Path | None = None,
    name: str = "retriever",
    max_tokens: int = 256,
    query: str = "task",
) -> Tool:
    """A tool that sends the `count` best passages for the input `query`, best first.

    It looks through the text files of `folder` (`*.txt`, `*.md`), or, without one, through the
    input `corpus`, where paragraphs are passages. Each passage is a placeholder of its own,
    `passage1`, `passage2`, …, so its KV is shared by all who read it, and by other questions.

    Raises `UsageError` for a folder without text, and when bm25s is not installed.
    """
    need("bm25s", "tasks")
    passages = passages_of(folder) if folder else None

    def run(texts: Mapping[str, str]) -> list[str]:
        if passages is None and "corpus" not in texts:
            raise UsageError(f"tool `{name}` needs the input `corpus`, or a folder to look through")
        known = paragraphs(texts["corpus"]) if passages is None else passages
        found = best(known, texts[query], count)
        return found + [NOTHING] * (count - len(found))

    return Tool(name, run, outputs=passage_names(count), max_tokens=max_tokens)


def paragraphs(text: str) -> tuple[str, ...]:
    """The paragraphs of a text: what stands between blank lines, or on pages of its own.

    Lines may end as on Windows or on an old Mac; a line that holds only blanks is blank.
    """
    text = PAGES.sub("\n\n", LINES.sub("\n", text))
    parts = (part.strip().strip(UNSEEN).strip() for part in GAPS.split(text))
    return tuple(part for part in parts if part)


@lru_cache(maxsize=8)
def passages_of(folder: Path) -> tuple[str, ...]:
    """The text files of a folder, cut into passages of whole paragraphs, each under its title."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".md") and p.is_file())
    found = []
    for path in files:
        try:
            text = read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: {error}") from None
        gathered: list[str] = []
        for part in (*paragraphs(text), ""):
            gathered += [part] if part else []
            if gathered and (not part or len(" ".join(gathered).split()) >= WORDS):
                found.append("\n".join([path.stem, *gathered]))
                gathered = []
    if not found:
        raise UsageError(f"{folder} holds no text: put .txt or .md files there")
    return tuple(found)


def best(passages: Sequence[str], question: str, count: int) -> list[str]:
    """The `count` passages that share most with the question, best first.

    Equal ones, and all when none shares a word with it, come in the order that they have.
    """
    if not passages:
        return []
    index, tokens = _index(tuple(passages))
    asked = tokens([question], update_vocab=False, show_progress=False, allow_empty=False)
    scores = index.get_scores(asked[0]) if asked[0] else [0.0] * len(passages)
    ranked = sorted(range(len(passages)), key=lambda i: (-float(scores[i]), i))
    return [passages[i] for i in ranked[:count]]


@lru_cache(maxsize=8)
def _index(passages: tuple[str, ...]) -> tuple[Any, Any]:
    import bm25s

    tokenizer = bm25s.tokenization.Tokenizer(lower=False, splitter=words_of, stopwords=None)
    ids = tokenizer.tokenize(list(passages), show_progress=False, return_as="tuple")
    index = bm25s.BM25()
    index.index(ids, show_progress=False)
    return index, lambda *args, **options: tokenizer.tokenize(*args, return_as="ids", **options)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without those that stand in every English text.

    A word may be a single letter or digit; `C++` and `C#` are words, and `c`, too. Of a run of
    characters that no space parts, each is a word and so is each pair of neighbours.
    """
    text = ENDING.sub("", OPTIONAL.sub("", unicodedata.normalize("NFKC", text)))
    names = {found.start("name") for found in NAME_A.finditer(text)}
    if not text.isupper():
        names |= {found.start() for found in CAPITALS.finditer(text)}
    found: list[str] = []
    for match in WORD.finditer(text):
        word = match["word"]
        if word is None:
            run = CHARACTER.findall(match["run"])
            found += [*run, *map("".join, itertools.pairwise(run))]
            continue
        word = word.casefold().replace("i\u0307", "i")  # of İ
        at, end = match.span()
        # Beside a character that no space parts: A型.
        touched = UNSPACED_SIGN.search(text[max(at - 1, 0) : at] + text[end : end + 1])
        if word not in STOPWORDS or at in names or touched:
            found += [word, word + match["sign"]] if match["sign"] else [word]
    return found
