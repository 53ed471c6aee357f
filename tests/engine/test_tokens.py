"""The codec over a transformers tokenizer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from hypothesis import example, given, settings
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
@example("\ue000the")  # what a lead would melt into
@example("\n\nthe")
@example("nd the")
@example("好the")
@settings(max_examples=60, deadline=None)
def test_encoded_text_decodes_to_itself(name: str, text: str) -> None:
    codec = CODECS[name]()
    anchor = codec.encode("x")
    assert codec.tokenizer.convert_ids_to_tokens(anchor) == ["x"], "nothing is added to a text"
    # Behind another text: a tokenizer's decoder may strip the space at the very start.
    assert codec.decode([*anchor, *codec.encode(text)]) == f"x{text}"


def test_a_text_of_unknown_characters_gains_no_space() -> None:
    codec = space_codec("first", fallback=False)
    tokens = codec.tokenizer.convert_ids_to_tokens(codec.encode("好the"))
    assert tokens == ["<unk>", "t", "h", "e"]


def test_special_tokens_are_structure_in_structured_text_alone(codec: TokenizerCodec) -> None:
    assert codec.special_ids
    for special in codec.special_ids:
        text = f"x{codec.decode([special])}x"
        assert not codec.special_ids.intersection(codec.encode(text))
        assert codec.decode(codec.encode(text)) == text
        ids, offsets = codec.encode_structured(text)
        assert ids.count(special) == 1
        assert text[slice(*offsets[ids.index(special)])] == codec.decode([special])


def test_threads_do_not_mix_plain_and_structured_text() -> None:
    codec = byte_codec()
    special = codec.tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = "so <|im_end|> it is " * 20
    with ThreadPoolExecutor(4) as pool:
        both = [
            (pool.submit(codec.encode, text), pool.submit(codec.encode_structured, text))
            for _ in range(200)
        ]
        for plain, structured in both:
            assert special not in plain.result()
            assert special in structured.result()[0]


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
def test_with_a_clock_it_is_rendered_as_transformers_does(template: str, system: str) -> None:
    plain, timed = (space_codec("first", t) for t in (template, template + "{# strftime_now #}"))
    assert not plain.tells_time
    assert timed.tells_time
    assert timed.chat(system, "2+2?") == plain.chat(system, "2+2?")


def test_the_day_stands_still_until_it_is_moved() -> None:
    codec, next_day = byte_codec(DATED), DAY + timedelta(days=1)
    today = codec.at(DAY).chat("", "x")
    assert "Today is Saturday, 09 May 2026." in today
    assert "Sunday, 10 May" in codec.at(next_day).chat("", "x")
    assert codec.at(DAY).at(next_day).at(DAY).chat("", "x") == today
    timed = byte_codec("{{ messages[0]['content'] + strftime_now('%H:%M:%S.%f') }}")
    assert len({timed.chat("", "x") for _ in range(50)}) == 1


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
INSISTS = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('Begin with a system turn') }}"
    "{% endif %}[s]{{ messages[0]['content'] }}[u]{{ messages[1]['content'] }}[a]"
)
BY_NUMBER = "[s]{{ messages[0]['content'] }}[u]{{ messages[1]['content'] }}[a]"
BEHIND = (
    "{% for m in messages if m['role'] != 'system' %}{{ '[' + m['role'] + ']' }}"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}"
    "{% endif %}{{ m['content'] }}{% endfor %}[answer]"
)


@pytest.mark.parametrize(
    ("template", "system", "earlier", "expected"),
    [
        (INSISTS, "", 0, "[s][u]4+4?[a]"),
        (INSISTS, "Be brief.", 0, "[s]Be brief.[u]4+4?[a]"),
        (BY_NUMBER, "", 0, "[s][u]4+4?[a]"),
        (
            CHATML,
            "Be brief.",
            2,
            "(system\nBe brief.)(user\n2+2?)(assistant\n4)(user\n3+3?)(assistant\n6)(user\n4+4?)",
        ),
        (NO_SYSTEM, "Be brief.", 1, "(user\nBe brief.\n\n2+2?)(assistant\n4)(user\n4+4?)"),
        (BEHIND, "Be brief.", 0, "[user]Be brief.\n\n4+4?[answer]"),
        # It stays at the head.
        (BEHIND, "Be brief.", 1, "[user]Be brief.\n\n2+2?[assistant]4[user]4+4?[answer]"),
        (None, "Be brief.", 1, "Be brief.\n\n2+2?\n\nAnswer:4\n\n4+4?\n\nAnswer:"),
    ],
)
def test_where_system_text_and_earlier_turns_stand(
    template: str | None, system: str, earlier: int, expected: str
) -> None:
    turns = [("2+2?", "4"), ("3+3?", "6")][:earlier]
    text = byte_codec(template).chat(system, "4+4?", turns)
    text = text.replace("<|im_start|>", "(").replace("<|im_end|>\n", ")")
    assert text.removesuffix("(assistant\n").removesuffix("(model\n") == expected


TURNS = [("You check.", "2+2?"), ("Go on.", "The task. Go on."), ("x", "x"), ("\ue000", "\ue000!")]


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("name", [*KEEPS, *DROPS])
def test_a_system_text_stands_once_in_its_turn_or_the_users(
    name: str, turns: tuple[str, str]
) -> None:
    system, user = turns
    text = byte_codec({**KEEPS, **DROPS}[name]).chat(system, user)
    assert text.count(system) == 1 + user.count(system)
    assert text.index(system) < text.rindex(user)
    assert (f"{system}\n\n{user}" in text) == (name in DROPS or name == "in the user turn")


BROKEN = {
    "{% for t in tools %}{{ t }}{% endfor %}": "'NoneType' object is not iterable",
    "{{ raise_exception('a\nb\n\n c') }}": "a b c",
    "{% for m in messages %}": "TemplateSyntaxError",
    "{{ messages | nothing }}": "No filter named 'nothing'",
    "{{ tools.name.first }}": "UndefinedError",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ strftime_now() }}": "TypeError",
    "{{ strftime_now('%Y') + 1 }}": "can only concatenate str",
    "{{ strftime_now('%Y') | nothing }}": "No filter named 'nothing'",
}


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_cannot_be_rendered_is_an_error_of_one_line(template: str) -> None:
    for system in ("", "You check."):
        with pytest.raises(TemplateError) as caught:
            byte_codec(template).chat(system, "2+2?")
        said = str(caught.value)
        assert said.startswith("the model's chat template cannot be rendered (")
        assert BROKEN[template] in said
        assert "use another --model" in said
        assert "\n" not in said
        assert len(said) < 500
