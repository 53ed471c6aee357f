"""The codec over a transformers tokenizer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.engine.tokens import TokenizerCodec
from tests.codecs import byte_codec, smol_codec, space_codec, straddling_codec

CODECS = {
    "bytes": byte_codec,
    "straddling": straddling_codec,
    "smollm2": smol_codec,
    "first": lambda: space_codec("first"),
    "always": lambda: space_codec("always"),
    "prepend": lambda: space_codec("prepend"),
}
PLAIN = st.text(st.characters(max_codepoint=0xD7FF, exclude_categories=["Cs", "Cc"]), max_size=8)


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> TokenizerCodec:
    return CODECS[request.param]()


@pytest.mark.parametrize("name", CODECS)
@given(PLAIN)
@settings(max_examples=60, deadline=None)
def test_encoded_text_decodes_to_itself(name: str, text: str) -> None:
    codec = CODECS[name]()
    anchor = codec.encode("x")
    # Behind another text: a tokenizer's decoder may strip the space at the very start.
    assert codec.decode([*anchor, *codec.encode(text)]) == f"x{text}"


def test_nothing_is_added_to_a_text(codec: TokenizerCodec) -> None:
    assert codec.encode("") == []
    (letter,) = codec.encode("x")
    assert codec.tokenizer.convert_ids_to_tokens(letter) == "x"


def test_special_tokens_spelled_in_a_text_are_text(codec: TokenizerCodec) -> None:
    assert codec.special_ids
    for special in codec.special_ids:
        text = f"x{codec.decode([special])}x"
        assert not codec.special_ids.intersection(codec.encode(text))
        assert codec.decode(codec.encode(text)) == text


def test_special_tokens_are_structure_in_structured_text(codec: TokenizerCodec) -> None:
    special = next(iter(codec.special_ids))
    text = f"x{codec.decode([special])}x"
    ids, offsets = codec.encode_structured(text)
    assert ids.count(special) == 1
    start, end = offsets[ids.index(special)]
    assert text[start:end] == codec.decode([special])


def test_a_text_that_starts_with_what_a_lead_would_melt_into() -> None:
    codec = space_codec("first")
    for text in ("\ue000the", "\n\nthe", "nd the", "好the"):
        assert codec.decode([*codec.encode("x"), *codec.encode(text)]) == f"x{text}"


def test_a_text_of_unknown_characters_gains_no_space() -> None:
    codec = space_codec("first", fallback=False)
    tokens = codec.tokenizer.convert_ids_to_tokens(codec.encode("好the"))
    assert tokens == ["<unk>", "t", "h", "e"]


def test_special_ids_are_those_of_the_tokenizer() -> None:
    codec = smol_codec()
    spelled = {codec.decode([i]) for i in codec.special_ids}
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= spelled
    assert all(text.startswith("<") and text.endswith(">") for text in spelled)


def test_threads_do_not_mix_plain_and_structured_text() -> None:
    codec = byte_codec()
    special = codec.tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = "so <|im_end|> it is " * 20

    def plain(_: int) -> bool:
        return special in codec.encode(text)

    def structured(_: int) -> bool:
        return special in codec.encode_structured(text)[0]

    with ThreadPoolExecutor(4) as pool:
        results = [(pool.submit(plain, i), pool.submit(structured, i)) for i in range(200)]
        assert {(a.result(), b.result()) for a, b in results} == {(False, True)}


def test_the_chat_of_the_embedded_model() -> None:
    assert smol_codec().chat("You check.", "2+2?") == (
        "<|im_start|>system\nYou check.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
