"""Messages: which of the generated ids survive post-processing, and where their KV comes from."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.message import Handle, Outgoing, Span, outgoing, strip_thinking
from kvcomm.prompt import Codec
from tests.codecs import byte_codec, smol_codec, space_codec, straddling_codec

CODECS = {
    "bytes": byte_codec,
    "straddling": straddling_codec,
    "space at the start": space_codec,
    "smollm2": smol_codec,
}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]()


def same(text: str) -> str:
    return text


def check(codec: Codec, generated: list[int], message: Outgoing) -> None:
    """What every message promises."""
    end, behind = 0, 0
    for span in message.spans:
        assert span.length > 0
        assert span.start >= end
        assert span.source >= behind
        end, behind = span.start + span.length, span.source + span.length
        assert end <= len(message.ids)
        taken = tuple(generated[span.source : span.source + span.length])
        assert message.ids[span.start : end] == taken
    assert not codec.special_ids.intersection(message.ids)


def reused(message: Outgoing) -> int:
    return sum(span.length for span in message.spans)


def test_an_untouched_message_keeps_its_ids(codec: Codec) -> None:
    generated = codec.encode("The answer is 42: 好é🙂\n")
    message = outgoing(codec, generated, same)
    assert message == Outgoing(
        codec.decode(generated), tuple(generated), (Span(0, 0, len(generated)),)
    )


@pytest.mark.parametrize(
    ("generated", "post", "text"),
    [
        ("", strip_thinking, ""),
        ("", lambda _: "no answer", "no answer"),
        ("<think> so", strip_thinking, ""),
        ("the answer", str.upper, "THE ANSWER"),
    ],
)
def test_of_a_text_that_was_written_anew_nothing_is_reused(
    codec: Codec, generated: str, post: Callable[[str], str], text: str
) -> None:
    message = outgoing(codec, codec.encode(generated), post)
    assert message == Outgoing(text, tuple(codec.encode(text)), ())


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>why</think>\n\nIt is 4.", "It is 4."),
        ("why</think>\n\nIt is 4.", "It is 4."),
        ("\n<think>why is it", ""),
        ("<think></think>4", "4"),
        ("It is 4.", "It is 4."),
        ("a <think> is a tag", "a <think> is a tag"),
        ("", ""),
    ],
)
def test_thinking_is_cut(text: str, left: str) -> None:
    assert strip_thinking(text) == left


@pytest.mark.parametrize(
    ("thought", "said"),
    [("<think>why</think>\n\n", "It is 4."), ("<think>42 or 43?</think>", "42")],
)
def test_what_follows_the_thinking_keeps_its_kv(thought: str, said: str) -> None:
    codec = byte_codec()
    message = outgoing(codec, codec.encode(thought + said), strip_thinking)
    assert (message.text, message.spans) == (said, (Span(0, len(thought), len(said)),))


def test_a_cut_inside_a_token_encodes_only_the_edges_again() -> None:
    codec = smol_codec()
    text = " something interesting happened yesterday evening"
    generated = codec.encode(text)
    message = outgoing(codec, generated, lambda t: t[5:-4])
    check(codec, generated, message)
    assert codec.decode(message.ids) == message.text == text[5:-4]
    assert message.spans[0].source == 1
    assert reused(message) == len(generated) - 2
    assert list(message.ids[: message.spans[0].start]) == codec.encode("thing")
    message = outgoing(codec, generated[:1], lambda t: t[2:5])
    assert message == Outgoing("ome", tuple(codec.encode("ome")), ())


@pytest.mark.parametrize(
    ("cut", "left"),
    [(slice(0, 2), "a🙂"), (slice(2, None), "好é"), (slice(1, 3), "🙂好"), (slice(3, None), "é")],
)
def test_characters_of_several_tokens_are_kept_or_cut_whole(cut: slice, left: str) -> None:
    for codec in (byte_codec(), straddling_codec(), space_codec(), smol_codec()):
        generated = codec.encode("a🙂好é")
        message = outgoing(codec, generated, lambda text: text[cut])
        check(codec, generated, message)
        assert codec.decode(message.ids) == message.text == left
        assert reused(message) == len(codec.encode(left))


@pytest.mark.parametrize("held", [1, 2, 3])
def test_a_character_that_was_never_finished_is_kept_or_cut_whole(held: int) -> None:
    codec = byte_codec()
    before, broken, after = codec.encode("so "), codec.encode("🙂")[:held], codec.encode("é it is")
    generated = [*before, *broken, *after]
    assert codec.decode(generated) == "so \ufffdé it is"
    behind = outgoing(codec, generated, lambda text: text[4:])
    assert behind.ids == tuple(after)
    assert behind.spans == (Span(0, len(before) + held, len(after)),)
    assert outgoing(codec, generated, lambda text: text[:4]).ids == (*before, *broken)


def test_special_tokens_become_plain_text_between_spans() -> None:
    for codec in (byte_codec(), smol_codec()):
        special = codec.tokenizer.convert_tokens_to_ids("<|im_start|>")
        before, after = codec.encode("so "), codec.encode("user")
        generated = [*before, special, *after]
        message = outgoing(codec, generated, same)
        check(codec, generated, message)
        plain = codec.encode("<|im_start|>")
        assert message.text == "so <|im_start|>user"
        assert message.ids == (*before, *plain, *after)
        behind = len(before) + len(plain)
        ends = Span(0, 0, len(before)), Span(behind, len(before) + 1, len(after))
        assert message.spans == ends
        message = outgoing(codec, [special, special], same)
        assert (message.ids, message.spans) == ((*plain, *plain), ())


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=80)
def test_spans_say_where_ids_come_from(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]()
    size = len(codec.tokenizer)
    tokens = st.one_of(
        st.lists(st.integers(0, size - 1), max_size=12),
        st.lists(st.sampled_from(["a", " the", "é", "🙂", "好", "\n", "</think>", " and"]))
        .map("".join)
        .map(codec.encode),
    )
    generated = data.draw(tokens)
    text = codec.decode(generated)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    for post in (same, strip_thinking, lambda t: t[start:stop]):
        message = outgoing(codec, generated, post)
        assert message.text == post(text)
        check(codec, generated, message)
        if name == "bytes":
            assert codec.decode(message.ids) == message.text


@pytest.mark.parametrize("name", ["bytes", "straddling", "smollm2"])
@given(
    words=st.lists(st.sampled_from(["a", " the", "é", "🙂", "好", "\n", " interesting"])),
    start=st.integers(0, 20),
    length=st.integers(0, 20),
)
@settings(max_examples=80)
def test_ids_of_a_cut_message_spell_it(
    name: str, words: list[str], start: int, length: int
) -> None:
    codec = CODECS[name]()
    generated = codec.encode("".join(words))
    message = outgoing(codec, generated, lambda text: text[start : start + length])
    assert codec.decode(message.ids) == message.text
    again = [i for i in range(len(message.ids)) if not _covered(message, i)]
    assert len(again) <= 2 * max((len(w.encode()) for w in words), default=0)


def _covered(message: Outgoing, position: int) -> bool:
    return any(s.start <= position < s.start + s.length for s in message.spans)


def test_a_long_message_is_cut_with_few_decodes() -> None:
    codec = byte_codec()

    class Counting:
        special_ids, encode, decodes = codec.special_ids, staticmethod(codec.encode), 0

        def decode(self, ids: list[int]) -> str:
            self.decodes += 1
            return codec.decode(ids)

    counting = Counting()
    generated = codec.encode("<think>" + "why? " * 2000 + "</think>" + "So it is. " * 2000)
    message = outgoing(counting, generated, strip_thinking)
    assert reused(message) == 20_000
    assert counting.decodes < 60


def test_a_handle_lists_the_positions_that_have_kv() -> None:
    assert Handle("key", 6, ((0, 2), (4, 5)), exact=True).positions == [0, 1, 4]
