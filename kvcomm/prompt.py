"""From a template with named placeholders to segments of token ids.

A template is text with `{name}` holes. The chat template of the model wraps it, and the result is
cut at token level into literals and placeholders, once per agent; filling it is then a matter of
putting ids between ids, and no text is tokenised across a boundary.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Literal as Kind
from typing import Protocol

from kvcomm.errors import TemplateError
from kvcomm.message import Handle, TextCodec, well_formed

# Doubled braces, a hole, or a brace that is neither.
BRACES = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w@-]*)\}|[{}]")
# A private-use character marks the holes while the chat template is applied.
MARK = "\ue000"
# Stands before a segment that is spelled by itself.
LEAD = "x"

# The texts of a user's turn and of the assistant's.
Turns = tuple[str, str]


class Codec(TextCodec, Protocol):
    """What a prompt needs of a tokenizer. Implemented by `kvcomm.engine.tokens`."""

    @property
    def control(self) -> re.Pattern[str]:
        """Finds the tokens of `special_ids` where a text spells them."""

    @property
    def undated(self) -> Codec:
        """The codec as of a fixed day; itself if its chat template writes neither day nor time."""

    def at(self, now: datetime) -> Codec:
        """The codec as of `now`, for chat templates that write the day or the time."""

    def encode_structured(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of text whose special tokens are structure."""

    def chat(self, system: str, user: str, earlier: Sequence[Turns] = ()) -> str:
        """One system and one user turn, and the header of the assistant's turn.

        `earlier` user and assistant turns stand between the two.
        """

    def completion(self, system: str, user: str, earlier: Sequence[Turns] = ()) -> str:
        """The texts as they are, behind the token with which the model's texts begin."""


@dataclass(frozen=True)
class Text:
    """Fixed text of a template."""

    text: str


@dataclass(frozen=True)
class Hole:
    """A place in a template that is filled at run time."""

    name: str


@dataclass(frozen=True)
class Filled:
    """A hole that is filled with token ids already: they become part of a literal."""

    ids: tuple[int, ...]


Piece = Text | Hole
Part = Piece | Filled
# Nothing, where a control token spelled in a literal is cut in two.
SEAM = Filled(())


@dataclass(frozen=True)
class Exchange:
    """An earlier turn of a conversation: the ids of what filled the prompt, and of the answer.

    The `answer` holds what it began with.
    """

    texts: Mapping[str, tuple[int, ...]]
    answer: tuple[int, ...]


def parse_template(source: str) -> tuple[Piece, ...]:
    """Split `source` into text and holes; `{{` and `}}` are braces.

    Raises `TemplateError` for a brace that is neither a hole nor doubled.
    """
    pieces: list[Piece] = []
    text, at = "", 0
    for found in BRACES.finditer(source):
        text += source[at : found.start()]
        at = found.end()
        if found[1]:
            pieces += [Text(text), Hole(found[1])] if text else [Hole(found[1])]
            text = ""
        elif len(found[0]) == 2:
            text += found[0][0]
        else:
            around = source[max(0, at - 13) : at + 19]
            raise TemplateError(
                f"single brace in a prompt template near {around!r}: write `{{{{` and `}}}}` for "
                "braces, `{name}` for a placeholder"
            )
    text += source[at:]
    return (*pieces, Text(text)) if text else tuple(pieces)


@dataclass(frozen=True)
class Segment:
    """A literal or a filled placeholder: `ids` in the consumer's prompt, in order.

    The first `done` of them are in its sequence already, computed ahead. `index` is its place among
    the template's literals and placeholders.
    """

    kind: Kind["literal", "placeholder"]
    name: str
    ids: tuple[int, ...]
    handle: Handle | None = None
    done: int = 0
    index: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rest(self) -> tuple[int, ...]:
        """The ids that are still to come."""
        return self.ids[self.done :]


@dataclass(frozen=True)
class Template:
    """An agent's prompt at token level: literals around named placeholders.

    `literals` has one entry more than `names`: literal 0, placeholder 0, literal 1, …; a literal
    may be empty. `fingerprint` names the template in saved state: it is that of a fixed day, where
    the literals hold today's. The last `begun` tokens of the last literal are the beginning of the
    answer.
    """

    literals: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    fingerprint: str
    begun: int = 0

    @property
    def begins(self) -> tuple[int, ...]:
        """The ids with which the answer begins, before any is sampled."""
        return self.literals[-1][len(self.literals[-1]) - self.begun :]

    def fill(
        self, texts: Mapping[str, tuple[int, ...]], handles: Mapping[str, Handle] | None = None
    ) -> list[Segment]:
        """The segments of one prompt, empty literals left out."""
        handles = handles or {}
        return [
            slot
            if isinstance(slot, Segment)
            else Segment("placeholder", slot, texts[slot], handles.get(slot), index=index)
            for index, slot in enumerate(self.slots())
        ]

    def slots(self) -> list[Segment | str]:
        """Literals as segments and placeholders as names, in prompt order."""
        slots: list[Segment | str] = []
        for index, literal in enumerate(self.literals):
            if literal:
                slots.append(Segment("literal", f"literal {index}", literal, index=len(slots)))
            if index < len(self.names):
                slots.append(self.names[index])
        return slots

    def number(self, index: int) -> int:
        """How many placeholders stand before the slot `index`."""
        return sum(isinstance(slot, str) for slot in self.slots()[:index])

    def literal_spans(self) -> list[range]:
        """Where each literal stands when all placeholders are empty."""
        spans, start = [], 0
        for literal in self.literals:
            spans.append(range(start, start + len(literal)))
            start += len(literal)
        return spans

    def literal_tokens(self) -> int:
        """Number of tokens in all literals."""
        return sum(len(literal) for literal in self.literals)


def compile_template(
    codec: Codec,
    system: Sequence[Piece],
    user: Sequence[Piece],
    begins: str = "",
    *,
    chat: bool = True,
    earlier: Sequence[Exchange] = (),
) -> Template:
    """Apply the chat template around the holes and cut the token ids at them.

    `begins` stands behind the header of the assistant's turn: the answer continues it. Without
    `chat` the prompt is the texts alone, for a plain completion. Each exchange of `earlier` is a
    user's turn, with its holes filled, and the assistant's.

    Literals are tokenised in context: the whole prompt is encoded once with a mark in every hole
    and cut at the character offsets, so a literal gets the ids it has inside the chat. Only a
    token that reaches over the edge of a hole has its literal part encoded by itself. Structure is
    what the chat template adds: a control token spelled in a literal is text, as in a filled hole.
    """
    role, ask = _split_control(codec, system), _split_control(codec, user)
    answer = [SEAM, *_split_control(codec, [Text(begins)])] if begins else []
    turns: list[tuple[list[Part], list[Part]]] = [
        ([Filled(e.texts[p.name]) if isinstance(p, Hole) else p for p in ask], [Filled(e.answer)])
        for e in earlier
    ]
    wrap = codec.chat if chat else codec.completion
    before = [(_marked(asked), _marked(answered)) for asked, answered in turns]
    text = wrap(_marked(role), _marked(ask), before) + _marked(answer)
    spoken = [piece for pair in turns for turn in pair for piece in turn]
    holes = [p for p in (*role, *spoken, *ask, *answer) if not isinstance(p, Text)]
    parts = text.split(MARK)
    if len(parts) != len(holes) + 1:
        raise TemplateError(
            f"the model's chat template kept {len(parts) - 1} of {len(holes)} placeholders: "
            "it repeats or drops text, so its prompts cannot be cut into segments"
        )
    ids, offsets = codec.encode_structured(text)
    literals: list[tuple[int, ...]] = []
    start = begun = 0
    answers = len(parts) - sum(not isinstance(piece, Text) for piece in answer)
    for index, (hole, part) in enumerate(zip([None, *holes], parts, strict=True)):
        end = start + len(part)
        literal = _cut(codec, text, ids, offsets, start, end)
        begun += len(literal) if index >= answers else 0
        if isinstance(hole, Filled):
            literals[-1] += hole.ids + literal
        else:
            literals.append(literal)
        start = end + len(MARK)
    names = tuple(hole.name for hole in holes if isinstance(hole, Hole))
    digest = hashlib.sha256(repr((literals, len(names))).encode()).hexdigest()[:16]
    if (undated := codec.undated) is not codec and chat:
        digest = compile_template(undated, system, user, begins).fingerprint
    return Template(tuple(literals), names, digest, begun)


def _split_control(codec: Codec, pieces: Sequence[Piece]) -> list[Part]:
    """`pieces` with a seam inside every control token that their texts spell."""
    split: list[Part] = []
    for is_text, run in groupby(pieces, lambda piece: isinstance(piece, Text)):
        if not is_text:
            split += run
            continue
        # Neighbouring texts are one: together they may spell what neither does.
        text, start = well_formed("".join(p.text for p in run if isinstance(p, Text))), 0
        if MARK in text:
            raise TemplateError(f"a prompt template may not contain the character {MARK!r}")
        for found in codec.control.finditer(text):
            split += [Text(text[start : found.start() + 1]), SEAM]
            start = found.start() + 1
        split.append(Text(text[start:]))
    return split


def _marked(parts: Sequence[Part]) -> str:
    return "".join(part.text if isinstance(part, Text) else MARK for part in parts)


def _cut(
    codec: Codec,
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    start: int,
    end: int,
) -> tuple[int, ...]:
    """Ids of `text[start:end]` out of the encoding of all of `text`."""
    # A character may be spelled by several tokens: none of them is kept if one reaches over.
    low = max((b for a, b in offsets if a < start < b), default=start)
    high = min((a for a, b in offsets if a < end < b), default=end)
    inside = [i for i, (a, b) in enumerate(offsets) if low <= a < b <= high]
    if not inside:
        return tuple(codec.encode(text[start:end])) if end > start else ()
    first, last = inside[0], inside[-1]
    head, tail = text[start : offsets[first][0]], text[offsets[last][1] : end]
    around = [codec.encode(part) if part else [] for part in (head, tail)]
    return (*around[0], *ids[first : last + 1], *around[1])


def spelled(codec: Codec, ids: Sequence[int], *, opening: bool) -> str:
    """The text of one segment, special tokens spelled out; `opening`: no other stands before it.

    Texts of whole segments, one behind the other, are the text of the prompt.
    """
    # Some tokenizers drop a space where a text begins: only the opening begins one.
    lead = "" if opening else LEAD
    return codec.decode([*codec.encode(lead), *ids]).removeprefix(lead)


def common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Length of the common prefix of two sequences."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))
