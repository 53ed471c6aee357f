"""What agents send each other: text, the token ids behind it, and a handle on their KV."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

# The most tokens that spell one character: the bytes of its UTF-8 form.
CHARACTER = 4


@dataclass(frozen=True)
class Handle:
    """A reference to KV in the segment cache: data, never a tensor.

    `covered` lists the `[start, end)` ranges of the text's `tokens` that have KV; the others (a
    last sampled token, text that was encoded again) are computed by the consumer. `exact` is the
    lineage: every KV this one was computed from was itself computed.
    """

    key: str
    tokens: int
    covered: tuple[tuple[int, int], ...]
    exact: bool

    @property
    def positions(self) -> list[int]:
        """The token positions that have KV, in order."""
        return [i for start, end in self.covered for i in range(start, end)]


@dataclass(frozen=True)
class Message:
    """One agent's output. `finished_at` is the clock when its final token was sampled."""

    sender: str
    text: str
    ids: tuple[int, ...]
    handle: Handle | None
    finished_at: float


@dataclass(frozen=True)
class Span:
    """`length` tokens at `start` of a message are those at `source` of what was generated."""

    start: int
    source: int
    length: int


@dataclass(frozen=True)
class Outgoing:
    """What survives of generated ids: text, message ids, and where their KV comes from."""

    text: str
    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def well_formed(text: str) -> str:
    """`text` with surrogate pairs joined, and U+FFFD for every half: what UTF-8 can write."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class TextCodec(Protocol):
    """The part of a codec that messages need."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that carry structure (turn markers, end of text), never plain text."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: special tokens spelled in it stay text, nothing is added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens spelled out."""


def strip_thinking(text: str) -> str:
    """Cut a leading `<think>…</think>` block: the default post-processing.

    Some chat templates open the block in the prompt, so only its end shows; a block that is still
    open at the end of the text leaves nothing.
    """
    _, closed, answer = text.partition("</think>")
    if closed:
        return answer.lstrip()
    return "" if text.lstrip().startswith("<think>") else text


def outgoing(
    codec: TextCodec,
    generated: Sequence[int],
    post: Callable[[str], str],
    begins: Sequence[int] = (),
) -> Outgoing:
    """The message that `post` makes of `generated` (stop token removed).

    `begins` are ids that stood in the prompt right before it and belong to the message: its spans
    count them as -1, -2, … from the first generated token on backwards.

    Where the result is a piece of the generated text, the ids of that piece are kept as they were
    sampled and their KV stays usable; text at a cut edge is encoded again. Special tokens that the
    model wrote into its text are encoded again as plain text: filled text is never structure.
    A `post` that rewrites the text yields fresh ids and no spans.
    """
    generated = [*begins, *generated]
    text = codec.decode(generated)
    kept = well_formed(post(text))
    # What is left of a cut text is most often its end: the same words may stand in what was cut.
    at = len(text) - len(kept) if text.endswith(kept) else text.find(kept)
    if not kept or at < 0:
        return Outgoing(kept, tuple(codec.encode(kept)), ())
    end = at + len(kept)
    first, starts = _boundary(codec, generated, text, at, forward=True)
    last, ends = _boundary(codec, generated, text, end, forward=False)
    if last <= first:
        return Outgoing(kept, tuple(codec.encode(kept)), ())
    ids = codec.encode(text[at:starts]) if starts > at else []
    spans: list[Span] = []
    for source, token in enumerate(generated[first:last], first - len(begins)):
        if token in codec.special_ids:
            ids += codec.encode(codec.decode([token]))
            continue
        if spans and spans[-1].source + spans[-1].length == source:
            spans[-1] = replace(spans[-1], length=spans[-1].length + 1)
        else:
            spans.append(Span(len(ids), source, 1))
        ids.append(token)
    ids += codec.encode(text[ends:end]) if end > ends else []
    return Outgoing(kept, tuple(ids), tuple(spans))


def _boundary(
    codec: TextCodec, ids: Sequence[int], text: str, chars: int, *, forward: bool
) -> tuple[int, int]:
    """Where a cut after `chars` characters of `text` can be made between two of its tokens.

    Returns the number of tokens before the nearest such place, not before (`forward`) or not
    behind the character, and the number of characters they spell.
    """
    if chars in (0, len(text)):
        return (0, 0) if chars == 0 else (len(ids), len(text))
    near = bisect_left(range(len(ids)), chars, key=lambda count: len(codec.decode(ids[:count])))

    def spelled(count: int) -> int | None:
        """The characters of `count` tokens; None inside a character of several tokens."""
        prefix = codec.decode(ids[:count])
        return len(prefix) if text.startswith(prefix) else None

    # A character of several tokens may show from the first of them on: its last is further on.
    back = range(min(near + CHARACTER, len(ids)), -1, -1)
    for count in range(near, len(ids) + 1) if forward else back:
        length = spelled(count)
        if length is not None and (length >= chars if forward else length <= chars):
            while count < len(ids) and spelled(count + 1) == length:
                count += 1
            return count, length
    raise AssertionError("no tokens and all tokens are boundaries")
