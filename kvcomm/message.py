"""What agents send each other: text, the token ids behind it, and a handle on their KV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Handle:
    """A reference to position-free KV in the store: data, never a tensor.

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


class TextCodec(Protocol):
    """The part of a codec that messages need."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def strip_thinking(text: str) -> str:
    """Cut a leading `<think>…</think>` block: the default post-processing.

    Some chat templates open the block in the prompt, so only its end shows; a block that is still
    open at the end of the text leaves nothing.
    """
    _, closed, answer = text.partition("</think>")
    if closed:
        return answer.lstrip()
    return "" if text.lstrip().startswith("<think>") else text


def outgoing(codec: TextCodec, generated: Sequence[int], post: Callable[[str], str]) -> Outgoing:
    """The message that `post` makes of `generated` (stop token removed).

    Where the result is a piece of the generated text, the ids of that piece are kept as they were
    sampled and their KV stays usable; text at a cut edge is encoded again. Special tokens that the
    model wrote into its text are encoded again as plain text: filled text is never structure.
    A `post` that rewrites the text yields fresh ids and no spans.
    """
    text = codec.decode(generated)
    kept = post(text)
    if kept == text:
        return _keep(codec, generated, 0, len(generated), "", "", text)
    at = text.find(kept)
    if not kept or at < 0:
        return Outgoing(kept, tuple(codec.encode(kept)), ())
    first = _tokens_before(codec, generated, at, at_least=True)
    last = _tokens_before(codec, generated, at + len(kept), at_least=False)
    if last <= first:
        return Outgoing(kept, tuple(codec.encode(kept)), ())
    head = text[at : len(codec.decode(generated[:first]))]
    tail = text[len(codec.decode(generated[:last])) : at + len(kept)]
    return _keep(codec, generated, first, last, head, tail, kept)


def _tokens_before(codec: TextCodec, ids: Sequence[int], chars: int, *, at_least: bool) -> int:
    """How many tokens spell `chars` characters: the fewest that reach them, or the most within."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(codec.decode(ids[:middle])) < chars:
            low = middle + 1
        else:
            high = middle
    exact = len(codec.decode(ids[:low])) == chars
    return low if exact or at_least else low - 1


def _keep(
    codec: TextCodec,
    generated: Sequence[int],
    first: int,
    last: int,
    head: str,
    tail: str,
    text: str,
) -> Outgoing:
    """Ids `first:last` as sampled, special tokens encoded as plain text, edges encoded again."""
    ids: list[int] = codec.encode(head) if head else []
    spans: list[Span] = []
    for source in range(first, last):
        token = generated[source]
        if token in codec.special_ids:
            ids += codec.encode(codec.decode([token]))
        elif spans and spans[-1].source + spans[-1].length == source:
            spans[-1] = Span(spans[-1].start, spans[-1].source, spans[-1].length + 1)
            ids.append(token)
        else:
            spans.append(Span(len(ids), source, 1))
            ids.append(token)
    ids += codec.encode(tail) if tail else []
    return Outgoing(text, tuple(ids), tuple(spans))
