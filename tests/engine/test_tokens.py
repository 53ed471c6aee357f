"""The codec over a transformers tokenizer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.engine.tokens import CHATML, TokenizerCodec
from kvcomm.errors import TemplateError
from tests.codecs import (
    DATED,
    DROPS_SYSTEM,
    LLAMA2,
    NO_SYSTEM,
    byte_codec,
    smol_codec,
    space_codec,
    straddling_codec,
)

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


# --- the chat template ---

DAY = datetime(2026, 5, 9, 23, 59, 59)
STEPS = (
    "{% macro step(n) %}{{ n | tojson }}{% endmacro %}{% set seen = namespace(n=0) %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}{% continue %}{% endif %}"
    "{% set seen.n = seen.n + 1 %}{{ step(seen.n) + bos_token + m['content'] }}"
    "{% generation %}{{ eos_token }}{% endgeneration %}{% endfor %}"
    "{% if tools is none and documents is none and add_generation_prompt %}go{% endif %}\n"
)


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, DROPS_SYSTEM, LLAMA2, STEPS])
@pytest.mark.parametrize("system", ["", "You check.\n"])
def test_a_template_with_a_clock_is_rendered_as_transformers_does(
    template: str, system: str
) -> None:
    plain, timed = (space_codec("first", t) for t in (template, template + "{# strftime_now #}"))
    assert not plain.tells_time
    assert timed.tells_time
    assert timed.chat(system, "2+2?") == plain.chat(system, "2+2?")


def test_the_day_stands_still_until_it_is_moved() -> None:
    codec = byte_codec(DATED)
    assert "Today is Saturday, 09 May 2026." in codec.at(DAY).chat("You check.", "2+2?")
    assert "Sunday, 10 May" in codec.at(DAY + timedelta(days=1)).chat("", "2+2?")
    assert codec.at(DAY).at(DAY + timedelta(days=1)).at(DAY).chat("", "x") == codec.at(DAY).chat(
        "", "x"
    )


def test_a_codec_keeps_the_moment_that_it_was_made_at() -> None:
    timed = byte_codec("{{ messages[0]['content'] + strftime_now('%H:%M:%S.%f') }}")
    assert len({timed.chat("", "x") for _ in range(50)}) == 1
    before, made, after = datetime.now(), TokenizerCodec(timed.tokenizer), datetime.now()
    assert before <= made.now <= after


def test_only_a_codec_whose_prompts_depend_on_the_day_has_another_one_without() -> None:
    assert byte_codec().undated is byte_codec()
    dated = byte_codec(DATED).at(DAY)
    assert dated.undated is not dated
    assert dated.undated.undated.chat("", "x") == byte_codec(DATED).undated.chat("", "x")
    assert dated.undated.encode("x") == dated.encode("x")


# What models' templates do with a system turn.
KEEPS = {
    "ChatML": CHATML,
    "trimmed": CHATML.replace("m['content'] +", "m['content'] | trim +"),
    "a day beside it": DATED,
    "in the user turn": (
        "{% set s = '' %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set s = m['content'] %}{% endif %}{% endfor %}"
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% endif %}"
        "[INST]{{ s + '\n\n' if s else '' }}{{ messages[-1]['content'] }}[/INST]"
    ),
    "only where it holds something": (
        "{% for m in messages if m['content'] | trim %}[{{ m['role'] }}]{{ m['content'] }}"
        "{% endfor %}[a]"
    ),
}
DROPS = {
    "dropped": DROPS_SYSTEM,
    "refused": NO_SYSTEM,
    "the last turn only": "[u]{{ messages[-1]['content'] }}[a]",
    "turns have to alternate": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[a]"
    ),
    "behind the user's": (
        "[u]{{ messages[-1]['content'] }}{% if messages | length > 1 %}[s]"
        "{{ messages[0]['content'] }}{% endif %}[a]"
    ),
    "an error in its branch": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ 1 + m['content'] }}{% endif %}"
        "[u]{{ m['content'] }}{% endfor %}[a]"
    ),
}
TURNS = [("You check.", "2+2?"), ("Go on.", "The task. Go on."), ("x", "x"), ("\ue000", "\ue000!")]


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("name", KEEPS)
def test_a_system_turn_that_is_kept_stands_once(name: str, turns: tuple[str, str]) -> None:
    system, user = turns
    text = byte_codec(KEEPS[name]).chat(system, user)
    assert text.count(system) == 1 + user.count(system)
    assert f"{system}\n\n{user}" not in text or name == "in the user turn"
    assert text.index(system) < text.rindex(user)


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("name", DROPS)
def test_a_system_turn_that_is_lost_heads_the_user_turn(name: str, turns: tuple[str, str]) -> None:
    system, user = turns
    text = byte_codec(DROPS[name]).chat(system, user)
    assert f"{system}\n\n{user}" in text
    assert text.count(system) == 1 + user.count(system)


INSISTS = {
    "raises": (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('Begin with a system turn') }}"
        "{% endif %}[s]{{ messages[0]['content'] }}[u]{{ messages[1]['content'] }}[a]"
    ),
    "by number": "[s]{{ messages[0]['content'] }}[u]{{ messages[1]['content'] }}[a]",
}


@pytest.mark.parametrize("name", INSISTS)
def test_a_template_that_insists_on_a_system_turn_has_one(name: str) -> None:
    codec = byte_codec(INSISTS[name])
    assert codec.chat("", "2+2?") == "[s][u]2+2?[a]"
    assert codec.chat("You check.", "2+2?") == "[s]You check.[u]2+2?[a]"


EARLIER = [("2+2?", "4"), ("3+3?", "6")]
CHATS = {
    "turns": (CHATML, "system\nBe brief.|user\n2+2?|assistant\n4|user\n3+3?|assistant\n6|user\n"),
    "no system": (NO_SYSTEM, "user\nBe brief.\n\n2+2?|assistant\n4|user\n3+3?|assistant\n6|user\n"),
}


@pytest.mark.parametrize("name", CHATS)
def test_earlier_turns_stand_between_system_and_user(name: str) -> None:
    template, expected = CHATS[name]
    text = byte_codec(template).chat("Be brief.", "4+4?", EARLIER)
    plain = text.replace("<|im_start|>", "").replace("<|im_end|>\n", "|")
    assert plain.startswith(f"{expected}4+4?|")


LAST = (
    "{% for m in messages if m['role'] != 'system' %}{{ '[' + m['role'] + ']' }}"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}"
    "{% endif %}{{ m['content'] }}{% endfor %}[answer]"
)


def test_a_system_text_that_a_template_moves_behind_earlier_turns_stays_at_the_head() -> None:
    codec = byte_codec(LAST)
    first = codec.chat("Be brief.", "2+2?")
    assert first == "[user]Be brief.\n\n2+2?[answer]"
    later = codec.chat("Be brief.", "3+3?", EARLIER[:1])
    assert later == "[user]Be brief.\n\n2+2?[assistant]4[user]3+3?[answer]"


def test_earlier_turns_without_a_chat_template() -> None:
    codec = byte_codec(None)
    assert codec.chat("Be brief.", "4+4?", EARLIER[:1]) == (
        "Be brief.\n\n2+2?\n\nAnswer:4\n\n4+4?\n\nAnswer:"
    )
    assert codec.completion("Be brief.", "4+4?", EARLIER[:1]) == "Be brief.\n\n2+2?4\n\n4+4?"


BROKEN = {
    "{% for t in tools %}{{ t }}{% endfor %}": "'NoneType' object is not iterable",
    "{{ raise_exception('Tools are needed') }}": "Tools are needed",
    "{{ raise_exception('a\nb\n\n c') }}": "a b c",
    "{% for m in messages %}": "TemplateSyntaxError",
    "{{ messages | nothing }}": "No filter named 'nothing'",
    "{{ tools.name.first }}": "UndefinedError",
    "{{ messages[0]['content'] + 1 }}": "can only concatenate str",
    "{{ 1 / 0 }}": "division by zero",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ strftime_now() }}": "TypeError",
    "{{ strftime_now('%Y') + 1 }}": "can only concatenate str",
    "{{ strftime_now('%Y') | nothing }}": "No filter named 'nothing'",
}


@pytest.mark.parametrize("system", ["", "You check."])
@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_cannot_be_rendered_is_an_error_of_one_line(
    template: str, system: str
) -> None:
    with pytest.raises(TemplateError) as caught:
        byte_codec(template).chat(system, "2+2?")
    said = str(caught.value)
    assert said.startswith("the model's chat template cannot be rendered (")
    assert BROKEN[template] in said
    assert "use another --model" in said
    assert "\n" not in said
    assert len(said) < 500


def test_templates_by_name_without_a_default_are_an_error_as_well() -> None:
    tokenizer = byte_codec().tokenizer
    with (
        mock.patch.object(tokenizer, "chat_template", {"a": CHATML, "b": CHATML}),
        pytest.raises(TemplateError, match="cannot be rendered"),
    ):
        TokenizerCodec(tokenizer).chat("", "x")
