"""Retrieval: a tool that finds the passages which bear on a question, by BM25."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvcomm.agents import Tool
from kvcomm.errors import UsageError
from kvcomm.extras import need
from kvcomm.tasks.rows import read_text
from kvcomm.tasks.task import passage_names
from kvcomm.tasks.words import words_of

# Passages of a user's files end at the paragraph that brings them to this many words.
WORDS = 120
NOTHING = "(No further passage was found.)"
LINES = re.compile("\r\n?|[\v\x85\u2028]")
PAGES = re.compile("[\f\u2029]")
# No white space, but nothing to see either.
UNSEEN = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
GAPS = re.compile(rf"\n[\s{UNSEEN}]*\n")


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
