"""What the readings of all kinds of answers share: boxes, tags, what announces, decoration."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# As many layers of decoration as are taken off; more are not decoration.
LAYERS = 20
# Colons: ASCII's, the full-width one, the small one, the sign of a ratio.
COLONS = ":\uff1a\ufe55\u2236"
# What stands between a noun ("answer", "option") and what it is said to be: a colon or a verb.
GIVEN = (
    r"[\"'`*_)\]]{0,9}(?:,?\s{1,9}(?:then|therefore|thus|hence|\w{1,20}ly)\b,?|,[^.:;?!,\n]{0,30},"
    r"|\s{1,9}(?:to|for|in|of|on|from|after|among|here|that|which|i|we)\b[^.:;?!\n]{0,60}?)?"
    rf"(?:\s{{0,9}}[{COLONS}=→]|['’]s\b|\s{{1,9}}(?:becomes|remains|equals"
    r"|(?:would|should|must|could|can|may|might|will)(?:\s{1,9}\w{1,20}){0,2}\s{1,9}be"
    r"|(?:has(?:\s{1,9}got)?|seems|appears|turns\s{1,9}out|ought|needs|(?:is|was)\s{1,9}\w{1,20})"
    r"\s{1,9}to\s{1,9}be|is|was)\b"
    r"(?-i:,?\s{1,9}(?:then|therefore|thus|hence|indeed|still|of\s{1,9}course)\b,?)?)"
)
LATEX = re.compile(
    r"\$?\\(?:boxed|fbox|text\w{0,9}|underline|math\w{1,9}|emph|operatorname)\s*\{([^{}]*)\}\$?"
)
ANSWER_TAG = re.compile(r"[<\[]\s?(/?)\s?(?:\w{1,20}[ _-])?answer\s?[>\]]", re.IGNORECASE)
# A line of nothing but a fence or a rule.
LINE = re.compile(r"^[ \t]*(?:(?:`{3}|~{3})[`~]*\w{0,20}|[-*_=]{3,99})[ \t]*$", re.MULTILINE)
THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning|scratchpad)>\s*(?=\S)", re.IGNORECASE)
TAG = re.compile(r"</?[a-z][\w-]{0,20}(?:\s[^<>\n]{0,100})?/?>|<\|\w{1,30}\|>", re.IGNORECASE)


@dataclass(frozen=True)
class Delimited:
    """Something with delimiters, from `start` to `end`, and the text between them."""

    start: int
    end: int
    text: str


def boxes(text: str) -> list[Delimited]:
    """The `\\boxed{}` and `\\fbox{}` of a text, in their order; empty ones are none."""
    starts = {box.end(): box.start() for box in BOX.finditer(text)}
    opened: list[int] = []
    found = []
    for sign in BRACE.finditer(text) if starts else ():
        if sign[0] == "{":
            opened.append(sign.end())
        elif sign[0] == "}" and opened and (inside := opened.pop()) in starts:
            found.append(Delimited(starts[inside], sign.end(), text[inside : sign.start()].strip()))
    return sorted((box for box in found if box.text), key=lambda box: box.start)


def last_box(text: str) -> str | None:
    """What stands in the last box."""
    return found[-1].text if (found := boxes(text)) else None


def answer_lines(text: str) -> str:
    """With `<answer>Paris</answer>` as a line "Answer: Paris"."""
    return ANSWER_TAG.sub(lambda tag: "\n" if tag[1] else "\nAnswer: ", text)


def untagged(text: str) -> str:
    """Without tags, rules, fences and thoughts that something follows.

    What stands in `<answer>` is a line of its own.
    """
    return LINE.sub("", TAG.sub("", answer_lines(THOUGHT.split(text)[-1])))


def unwrapped(text: str) -> str:
    """Without LaTeX's boxes and fonts: `\\boxed{\\text{C}}` is C."""
    return _layer_by_layer(lambda wrapped: LATEX.sub(r"\1", wrapped), text)


def undecorated(text: str) -> str:
    """Without quotes, emphasis and a final full stop around it."""

    def without_one(text: str) -> str:
        text = text.strip().strip('*_`"“”„‘’‚«»‹›「」『』').strip()
        text = text[1:-1] if len(text) > 1 and text[0] == text[-1] == "'" else text
        return text[:-1] if text.endswith((".", "。")) and not text.endswith("..") else text

    return _layer_by_layer(without_one, text)


def _layer_by_layer(without_one: Callable[[str], str], text: str) -> str:
    for _ in range(LAYERS):
        before, text = text, without_one(text)
        if text == before:
            break
    return text
