"""Where the answer to a mathematical problem stands in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from kvcomm.tasks.scoring.extract import Delimited, answer_lines, boxes, undecorated
from kvcomm.tasks.scoring.math_latex import latex_signs
from kvcomm.tasks.scoring.math_units import CHANGING, without_unit

# What announces an answer: "the answer is", "Answer:", "####", or a heading that says no more.
MARK = re.compile(
    r"(?P<final>\bfinal\s+)?\banswers?\b\*{0,2}"
    r"(?:[ \t]{0,3}(?:\([^)\n]{0,40}\)|to\s+(?:the|this|your)\b[^.:=\n$\\]{0,40})?"
    r"\*{0,2}[ \t]{0,3}[:=]"
    r"|[^.:=\n$\\\d#]{0,60}?\b(?:is|are|be|equals?)\b:?)"
    r"|^[ \t#*_>]*(?P<heading>(?:the\s+)?(?:final\s+)?answer)[ \t*_]*$"
    r"|(?P<solution>\b(?:solutions?|roots?)\s+(?:is|are)\b:?)"
    r"|(?P<hashes>(?<!#)####(?!#))",
    re.IGNORECASE | re.MULTILINE,
)
MARKS, REACH = 50, 2000
# "3 x 10^5", "1011 in base 2".
TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
BASED = re.compile(r"(?<=\d)\s+\(?(?:in\s+)?base[\s-](\d+|[a-z]+)\b\)?")
EMPHASIS = re.compile(r"(?<![\w*)])\*\*([^*\n]+)\*\*(?![\w*(])")
# Between boxes that are one answer: "and", "or", a comma, the name of the next one.
BETWEEN = re.compile(
    r"(?:[\s$.]|\\[()\[\],;: ]|\\q?quad|\\text\{\s*(?=[ao])|\}|[a-z]\s*(?:_\d)?\s*=)*"
    r"(?:,|;|\band\b|\bor\b)"
    r"(?:[\s$]|\\[()\[\],;: ]|\\q?quad|\}|and\b|or\b|\\text\{\s*(?=[ao])|[a-z]\s*(?:_\d)?\s*=)*"
)
DELIMITER = re.compile(
    r"(?<!\\)(?:\$\$?|\\[\[\]()]|\\(?:begin|end)\{(?:align|equation|gather|multline)\*?\})"
)
CLOSING = {"$": "$", "$$": "$$", r"\[": r"\]", r"\(": r"\)"}
for _name in ("align", "equation", "gather", "multline"):
    CLOSING |= {rf"\begin{{{_name}{star}}}": rf"\end{{{_name}{star}}}" for star in ("", "*")}
PRICE = re.compile(r"\s*\d[\d,.]*\s+[A-Za-z]{2,}")
# The rows of a derivation, and what says that a formula is more than one statement.
ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|split|gathered)\}")
SEVERAL = re.compile(
    r"[,;&]|\\(?:land|wedge|quad)\b|\b(?:and|or|if|when|where|while|for|as|at|with|given)\b"
)
JOINT = re.compile(r"\s*(?:,|;|,?\s*\b(?:and|or)\b)\s*", re.IGNORECASE)
# Words that go on about an answer, and those that may, unless another value follows.
ABOUT = "is|are|was|were|because|since|as|which|so|where|when|who|that|not|but|if"
NEAR = "for|from|in|on|at|with|after|before"
CLAUSE = re.compile(rf"(?:[,;:.!?]?\s+(?:and\s+(?=not))?(?:{ABOUT})\b|[.;!?]\s+(?=[A-Z])|\s+[(—])")
SENTENCE = re.compile(r"[.!?]\s+(?=[A-Z])")
NEARBY = re.compile(rf"\s+(?:{NEAR})\b(?!.*\b(?:and|or)\s+[-$]?\d)")
# Beginnings of a sentence about the answer, not of the answer.
NO_VALUE = re.compile(
    r"(?:clear|supported|given|found|shown|based|obtained|correct|wrong|right|explained|derived"
    r"|in|from|by|not|neither|what|how|this|that|called|also|always|unique|below|above)\b",
    re.IGNORECASE,
)
NUMBERED = re.compile(r"\(?\d+[.):]\s+\**[A-Za-z]")
SYMBOLS = re.compile(r"[a-zA-Z]\b(?!')(?:\s*[-+*/=^]\s*[a-zA-Z]\b)*\W*$")
EQUALS = re.compile(r"(?<![<>!])=")
HEADED = re.compile(r"[-+(\[{.$\\€£\d]|[A-Za-z]\s*=")


def readings(text: str) -> list[str]:
    """What may be the answer, the more that is said the earlier; empty where nothing is.

    It stands in the last `\\boxed{}` (several that are joined are one answer), unless a "final
    answer is" follows that; else behind the last "answer is", "Answer:" or "####" that has a
    value; else it is the last formula in delimiters or number of plain text.
    """
    text = EMPHASIS.sub(r"\1", latex_signs(answer_lines(text)))
    text = BASED.sub(r"_{\1}", TIMES.sub(r" \\times ", text))
    box, end = _boxed(text)
    marks = list(MARK.finditer(text, end))[-MARKS:]
    final = [mark for mark in marks if mark["final"] or mark["hashes"] or mark["heading"]]
    for mark in reversed(final if box else marks):
        found = _claim(text, mark, valued=True)
        if found:
            return found
    if box:
        return _sides(box)
    last = _last_value(text)
    words = [_claim(text, mark, valued=False) for mark in marks]
    return next((found for found in reversed(words) if found), last)


def _boxed(text: str) -> tuple[str, int]:
    """The boxes that are the answer, and where they end."""
    found = boxes(text)
    if not found:
        return "", 0
    parts = [found[-1].text]
    for one, following in reversed(list(pairwise(found))):
        between = text[one.end : following.start]
        if "\n\n" in between or len(between) > 70 or not BETWEEN.fullmatch(between):
            break
        if one.text not in parts:
            parts.append(one.text)
    return ", ".join(reversed(parts)), found[-1].end


def _sides(formula: str) -> list[str]:
    """A formula, or the last row of its derivation, and the last side of it when an equation."""
    rows = ALIGNED.sub("", formula)
    if r"\begin" not in rows:
        *before, row = re.sub(r"(?<!\\)&", "", rows).rstrip("\\ \n").split(r"\\")
        name, *sides = EQUALS.split(row)
        # A row about something else belongs to a system.
        if sides and (not before or name.strip() in "".join(before)):
            formula = row
    return [formula] if SEVERAL.search(formula) else [formula, EQUALS.split(formula)[-1]]


def formulas(text: str) -> Iterator[Delimited]:
    """The formulas in delimiters. A dollar before a digit opens a price, it closes nothing."""
    opened: re.Match[str] | None = None
    for sign in DELIMITER.finditer(text):
        if opened and CLOSING.get(opened[0]) == sign[0]:
            content = text[opened.end() : sign.start()]
            follows = text[sign.end() : sign.end() + 1]
            price = PRICE.match(content) or "\n" in content or follows.isdigit()
            if content.strip() and not (opened[0] == "$" and price):
                yield Delimited(opened.start(), sign.end(), content.strip())
                opened = None
                continue
        if sign[0] in CLOSING and (opened is None or opened[0] == "$"):
            opened = sign


def _together(text: str, found: list[Delimited]) -> tuple[str, int]:
    """The first formula with those that are joined to it, and where they end."""
    parts, end = [found[0].text], found[0].end
    for following in found[1:]:
        if not JOINT.fullmatch(text[end : following.start]):
            break
        parts.append(following.text)
        end = following.end
    return ", ".join(part.strip().rstrip(" .,;") for part in parts), end


def _claim(text: str, mark: re.Match[str], *, valued: bool) -> list[str]:
    """What is announced: all of the line, its beginning, its first formula.

    `valued`: a claim without a number or formula is none; else a claim of a few words is one.
    """
    rest = text[mark.end() : mark.end() + REACH].lstrip(" \t*_:>`}").lstrip()
    bare = mark["hashes"] or mark["heading"]
    delimited = list(formulas(rest))
    line = rest.split("\n", 1)[0]
    if not valued:
        said = undecorated(CLAUSE.split(line, maxsplit=1)[0])
        known = not bare and not NO_VALUE.match(said) and 0 < len(said.split()) <= 4
        return [undecorated(line), said] if known else []
    inline = [formula for formula in delimited if formula.end <= len(line)]
    if delimited and delimited[0].start == 0 and not inline:
        return _sides(delimited[0].text)
    if not inline and not re.search(r"[\d\\]", line):
        return [undecorated(line)] if SYMBOLS.match(line) else []
    if NO_VALUE.match(line) or (bare and (NUMBERED.match(line) or not HEADED.match(line))):
        return []
    if mark["solution"] and re.search(r"\d|\$|\\\(", text[mark.end() + len(line) + 10 :]):
        return []
    sentence = SENTENCE.split(line, maxsplit=1)[0]
    clause = CLAUSE.split(sentence, maxsplit=1)[0]
    found = [sentence, clause, NEARBY.split(clause, maxsplit=1)[0]]
    if inline and not re.search(r"\d", before := rest[: inline[0].start]):
        group, end = _together(rest, inline)
        after = CLAUSE.split(line[end:].lstrip(","), maxsplit=1)[0]
        if not CHANGING.search(before + after) and (end == inline[-1].end or not after.strip()):
            found.append(group)
    return [_trimmed(said) for said in (*found, *_sides(found[2])[1:]) if said.strip()]


def _trimmed(said: str) -> str:
    """Without decoration, and without a brace that was opened before it."""
    said = undecorated(said)
    return said[: said.rindex("}")] if said.count("}") > said.count("{") else said


NUMBER = re.compile(r"\d")
UNIT = 20
# What the answer is not; what makes another number of the one before it.
NEGATED = re.compile(r"(?:\b(?:not|never)|n't)\s+(?:\$[^$\n]*\$|\S*\d\S*)")
SCALE = re.compile(r"\s+(?:(?:and\s+)?(?:an?\s+)?hal(?:f|ves)|hundred|thousand|[mbtr]+illion|pi)\b")
# What a formula comes to, said behind it.
ROUNDED = re.compile(
    r"(?:\babout|\bapprox(?:imately|\.)?|\broughly|\baround|\bnearly|\\approx)\s*[^\s\w]?\d[\d.,]*\d"
)
LETTERED = re.compile(r"[A-Za-z][^=$]*\d")
LATEX = re.compile(r"[\\^_{}]")
ITEM = re.compile(r"[ \t]*\(?\d+[.)][ \t]+\S")
OPERAND = re.compile(
    r"[-+*/^=<>(){}\[\],.!%|\d\\$€£]+|(?:[^\w\s]|\d)*[a-zA-Z](?:[^\w\s]|\d)*|\S*\\\S*"
)
OPERATOR_LAST = re.compile(r"[-+*/^=<>(\[{]$|\\(?:cdot|times|div|pm|cup|cap|le|ge)$")
OPERATOR_FIRST = re.compile(r"[-+*/^=<>)\]}]|\\(?:cdot|times|div|pm|cup|cap|le|ge)\b")


def _last_value(text: str) -> list[str]:
    """The last formula in delimiters with those joined to it, or the last number behind it."""
    text = NEGATED.sub("", text)
    found = list(formulas(text))
    behind = ROUNDED.sub("", text[found[-1].end :]) if found else text
    for line in reversed(behind.split("\n")):
        if value := _last_number(line):
            return [value]
    if not found:
        return []
    start = len(found) - 1
    while start and JOINT.fullmatch(text[found[start - 1].end : found[start].start]):
        start -= 1
    return _sides(_together(text, found[start:])[0])


def _last_number(line: str) -> str:
    """The last number of a line, with the expression it is a part of."""
    begin = len(item[0]) - 1 if (item := ITEM.match(line)) else 0
    line = re.sub(r"(?<=[A-Za-z]):(?=[-$\d])", ": ", line)
    tokens = list(re.finditer(r"\S+", line[begin:]))
    for n in range(len(tokens) - 1, -1, -1):
        token = tokens[n][0]
        named = LETTERED.match(token.lstrip("(*_\"'")) and not LATEX.search(token)
        # A unit may have a digit: m^2.
        unit = len(bare := undecorated(token)) < UNIT and without_unit(f"1 {bare}") == "1"
        if not NUMBER.search(token) or named or unit:
            continue
        first = last = n
        while first and _belongs(tokens[first - 1][0], tokens[first][0]):
            first -= 1
        while last + 1 < len(tokens) and _belongs(tokens[last][0], tokens[last + 1][0]):
            last += 1
        run = " ".join(part[0] for part in tokens[first : last + 1])
        if scale := SCALE.match(line, begin + tokens[last].end()):
            return run + scale[0]
        run = _trimmed(EQUALS.split(run)[-1].strip() or token).strip(",;:!?")
        return run if run.count("(") == run.count(")") else run.strip("()")
    return ""


def _belongs(left: str, right: str) -> bool:
    """Whether two neighbours are one expression, or one number in groups of three digits."""
    if re.search(r"(?<!\d)\d{1,3}$", left) and re.match(r"\d{3}(?!\d)", right):
        return True
    if re.search(r"(?<![\d/.])\d+$", left) and re.match(r"\d+/\d+(?!\d)", right):
        return True
    if not OPERAND.fullmatch(left) or not OPERAND.fullmatch(right):
        return False
    return bool(OPERATOR_LAST.search(left) or OPERATOR_FIRST.match(right))
