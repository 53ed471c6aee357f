"""Templates: holes and braces, and literals that are tokenised in context."""

import time
from collections.abc import Sequence
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.engine.tokens import CHATML
from kvcomm.errors import TemplateError
from kvcomm.message import Handle
from kvcomm.prompt import (
    MARK,
    Codec,
    Exchange,
    Hole,
    Piece,
    Segment,
    Template,
    Text,
    compile_template,
    spelled,
)
from kvcomm.prompt import parse_template as parse
from tests.codecs import (
    DATED,
    DROPS_SYSTEM,
    NO_SYSTEM,
    TWICE,
    byte_codec,
    smol_codec,
    space_codec,
    straddling_codec,
)

CODECS = {
    "bytes": byte_codec,
    "no system turn": lambda: byte_codec(NO_SYSTEM),
    "system turn dropped": lambda: byte_codec(DROPS_SYSTEM),
    "no chat template": lambda: byte_codec(None),
    "a day in the prompt": lambda: byte_codec(DATED),
    "straddling": straddling_codec,
    "space at the start": space_codec,
    "smollm2": smol_codec,
}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]()


def ids_of(template: Template, codec: Codec, **texts: str) -> list[int]:
    filled = template.fill({name: tuple(codec.encode(text)) for name, text in texts.items()})
    return [i for segment in filled for i in segment.ids]


def worded(pieces: tuple[Piece, ...], texts: dict[str, str]) -> str:
    return "".join(p.text if isinstance(p, Text) else texts[p.name] for p in pieces)


@pytest.mark.parametrize(
    ("source", "pieces"),
    [
        ("", ()),
        ("{a}{b-c}", (Hole("a"), Hole("b-c"))),
        ("Do {a@1} now.", (Text("Do "), Hole("a@1"), Text(" now."))),
        (r"\boxed{{{task}}} {{x}}", (Text(r"\boxed{"), Hole("task"), Text("} {x}"))),
        ("{{{{}}}}", (Text("{{}}"),)),
    ],
)
def test_a_template_is_text_and_holes(source: str, pieces: tuple[Piece, ...]) -> None:
    assert parse(source) == pieces


@pytest.mark.parametrize(
    "source",
    [r"\boxed{answer", r"\boxed{12}", '{"a": 1}', "a } b", "{}", "{ task }", "{task", "{a}}"],
)
def test_a_single_brace_is_an_error_that_says_where_and_what_to_write(source: str) -> None:
    with pytest.raises(TemplateError, match=r"single brace.*write `\{\{` and `\}\}`"):
        parse(f"Answer like this: {source}")
    with pytest.raises(TemplateError, match=r"near 'th the form {x: 1 and stop\.'"):
        parse("Think of {task} and answer with the form {x: 1 and stop.")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARK)))
def test_escaped_text_parses_to_itself(text: str) -> None:
    source = text.replace("{", "{{").replace("}", "}}")
    assert parse(source) == ((Text(text),) if text else ())


def test_parsing_takes_linear_time() -> None:
    began = time.perf_counter()
    parse("{{a}} " * 200_000)
    assert time.perf_counter() - began < 2


def test_without_holes_the_prompt_is_the_chat(codec: Codec) -> None:
    template = compile_template(codec, parse("You check."), parse("Is 2+2 = 4?"))
    ids, _ = codec.encode_structured(codec.chat("You check.", "Is 2+2 = 4?"))
    assert template.names == ()
    assert template.literals == (tuple(ids),)


def test_literals_have_the_ids_they_have_inside_the_chat() -> None:
    codec = smol_codec()
    system, user = "You are {who}, a critic.", "{task}\n\nsolver wrote:\n{m}\n\nCheck."
    template = compile_template(codec, parse(system), parse(user))
    marked = [text.format(who=MARK, task=MARK, m=MARK) for text in (system, user)]
    ids, _ = codec.encode_structured(codec.chat(*marked))
    assert ids_of(template, codec, who=MARK, task=MARK, m=MARK) == ids


def test_a_literal_inside_a_prompt_gains_no_space() -> None:
    for scheme in ("first", "always", "prepend"):
        codec = space_codec(scheme)
        template = compile_template(codec, (), parse("x{a}and{b}the"))
        assert template.literals[1] == tuple(codec.tokenizer.convert_tokens_to_ids(["and"])), scheme
        text = codec.decode(ids_of(template, codec, a="the", b="a"))
        assert text.endswith("xtheandathe[/INST]"), scheme


def test_a_token_over_the_edge_of_a_hole_is_cut_at_the_edge() -> None:
    codec = straddling_codec()
    template = compile_template(codec, (), parse("so {a}b{b}é{c}"))
    ids, offsets = codec.encode_structured(codec.chat("", f"so {MARK}b{MARK}é{MARK}"))
    at = codec.chat("", f"so {MARK}b").index(MARK)
    assert {(at - 1, at + 1), (at, at + 2)} <= set(offsets), "the tokenizer does not straddle"
    assert len(ids) < sum(map(len, template.literals)) + 3 * len(MARK.encode())
    assert [codec.decode(literal) for literal in template.literals[1:3]] == ["b", "é"]
    assert codec.decode(template.literals[0]).endswith("so ")


PIECES = st.lists(
    st.one_of(
        st.sampled_from(["a", "b", "c"]).map(Hole),
        st.sampled_from([" and\n", "b", "é", "\n\n", "x: ", "{", "the answer", "好"]).map(Text),
    ),
    max_size=5,
)
# The vocabulary of SmolLM2 lacks some bytes of characters beyond the first plane.
PLAIN = st.characters(max_codepoint=0xD7FF, exclude_categories=["Cs", "Cc"])
FILLING = st.lists(
    st.sampled_from(["a", "b", "é", "🙂", "\n", " ", "<|im_end|>", "</s>", "好", "1"]), max_size=6
).map("".join) | st.text(PLAIN, max_size=6)


@pytest.mark.parametrize("name", CODECS)
@given(system=PIECES, user=PIECES, a=FILLING, b=FILLING, c=FILLING)
@settings(max_examples=40)
def test_a_filled_prompt_reads_as_the_chat_with_the_texts_in_place(
    name: str, system: list[Piece], user: list[Piece], a: str, b: str, c: str
) -> None:
    codec, texts = CODECS[name](), {"a": a, "b": b, "c": c}
    # Chat templates may trim a turn and leave out one that is empty: text stands around it.
    first, second = (Text("S:"), *system, Text(".")), (Text("U:"), *user, Text("."))
    template = compile_template(codec, first, second)
    prompt = ids_of(template, codec, **texts)
    assert codec.decode(prompt) == codec.chat(worded(first, texts), worded(second, texts))
    special = [i for i in prompt if i in codec.special_ids]
    assert special == [i for part in template.literals for i in part if i in codec.special_ids]
    segments = template.fill({key: tuple(codec.encode(text)) for key, text in texts.items()})
    one_by_one = (spelled(codec, s.ids, opening=not at) for at, s in enumerate(segments))
    assert "".join(one_by_one) == codec.decode(prompt)


@pytest.mark.parametrize("name", [name for name in CODECS if "dropped" not in name])
@given(
    system=PIECES, user=PIECES, texts=st.lists(st.tuples(*[FILLING] * 4), min_size=2, max_size=3)
)
@settings(max_examples=30)
def test_a_conversation_reads_as_the_chat_with_all_its_turns(
    name: str, system: list[Piece], user: list[Piece], texts: list[tuple[str, ...]]
) -> None:
    codec = CODECS[name]()
    first, second = (Text("S:"), *system, Text(".")), (Text("U:"), *user, Text("."))
    *before, now = [dict(zip("abc", turn, strict=False)) for turn in texts]
    answers = [f"A:{turn[3]}." for turn in texts[:-1]]

    def encoded(words: dict[str, str]) -> dict[str, tuple[int, ...]]:
        return {key: tuple(codec.encode(text)) for key, text in words.items()}

    earlier = [
        Exchange(encoded(words), tuple(codec.encode(answer)))
        for words, answer in zip(before, answers, strict=True)
    ]
    template = compile_template(codec, first, second, earlier=earlier)
    prompt = ids_of(template, codec, **now)
    said = [(worded(second, words), answer) for words, answer in zip(before, answers, strict=True)]
    assert codec.decode(prompt) == codec.chat(worded(first, now), worded(second, now), said)
    # What was said stands there as its ids, and it is no structure.
    row = bytes_of(prompt)
    assert all(bytes_of(exchange.answer) in row for exchange in earlier)
    plain = codec.chat("S:", "U:", [("U:", "A:")] * len(earlier))
    structure = [i for i in codec.encode_structured(plain)[0] if i in codec.special_ids]
    assert [i for i in prompt if i in codec.special_ids] == structure


@pytest.mark.parametrize(
    ("chat", "pieces", "earlier", "message"),
    [
        (DROPS_SYSTEM, [Hole("task")], 1, "kept 2 of 3 placeholders"),
        (TWICE, [Hole("task")], 0, "kept 2 of 1 placeholders"),
        (CHATML, [Text(f"a{MARK}"), Hole("task")], 0, "may not contain the character"),
    ],
)
def test_what_makes_no_prompts(chat: str, pieces: list[Piece], earlier: int, message: str) -> None:
    said = [Exchange({"task": (50,)}, (51,))] * earlier
    with pytest.raises(TemplateError, match=message):
        compile_template(byte_codec(chat), (), pieces, earlier=said)


def bytes_of(ids: Sequence[int]) -> bytes:
    """Ids as four bytes each, to search one list in another."""
    return b"".join(i.to_bytes(4, "big") for i in ids)


def test_a_name_used_twice_is_two_placeholders() -> None:
    codec = byte_codec()
    template = compile_template(codec, (), parse("{task} or {task}"))
    handle = Handle("key", 1, ((0, 1),), exact=True)
    segments = template.fill({"task": (50,)}, {"task": handle})
    names = ["literal 0", "task", "literal 1", "task", "literal 2"]
    assert [s.name for s in segments] == names
    assert [s.handle for s in segments] == [None, handle, None, handle, None]
    assert {s.name for s in segments if s.kind == "placeholder"} == {"task"}


def test_adjacent_and_outer_placeholders_leave_empty_literals_out() -> None:
    template = Template(((), (), (7,), ()), ("a", "b", "c"), "print")
    assert template.slots() == ["a", "b", Segment("literal", "literal 2", (7,), index=2), "c"]
    assert [len(s) for s in template.fill({"a": (1, 2), "b": (), "c": (3,)})] == [2, 0, 1, 1]
    assert template.literal_tokens() == 1


@pytest.mark.parametrize("chat", [NO_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_turn_its_text_heads_the_user_turn(chat: str) -> None:
    codec = byte_codec(chat)
    text = codec.chat("You check.", "The task.")
    assert "<|im_start|>user\nYou check.\n\nThe task.<|im_end|>" in text
    assert "system" not in text


def test_a_model_without_chat_template_gets_the_texts_and_a_line_to_answer_on() -> None:
    assert byte_codec(None).chat("You check.", "2+2?") == "You check.\n\n2+2?\n\nAnswer:"
    assert byte_codec(None).chat("", "2+2?") == "2+2?\n\nAnswer:"
    codec = space_codec("first", None)  # it starts as its tokenizer does
    template = compile_template(codec, (), parse("the {task}"))
    plain = codec.tokenizer("the a\n\nAnswer:")["input_ids"]
    assert template.literals[0][0] == plain[0] == codec.tokenizer.bos_token_id


def test_the_fingerprint_changes_with_literals_and_number_of_holes() -> None:
    def fingerprint(source: str) -> str:
        return compile_template(byte_codec(), (), parse(source)).fingerprint

    assert fingerprint("a {x} b") == fingerprint("a {y} b")
    sources = ["a {x} b", "a {x}{x} b", "a {x} c", "a  b", "a {x} {x}b"]
    assert len({fingerprint(source) for source in sources}) == len(sources)


@pytest.mark.parametrize("chat", [NO_SYSTEM, DROPS_SYSTEM])
@pytest.mark.parametrize(
    ("system", "user"),
    [
        ("{rules}", "{task}\n\nGo on."),
        ("{rules}", "{task}"),
        ("{task}", "{task}"),
        (" {rules}\n", "{task}"),
        ("{rules}{task}", "{rules}{task}"),
        ("Go on.", "{task}\n\nGo on."),
    ],
)
def test_a_system_text_that_the_user_turn_holds_is_kept(chat: str, system: str, user: str) -> None:
    codec = byte_codec(chat)
    template = compile_template(codec, parse(system), parse(user))
    texts = {"rules": "Be kind.", "task": "2+2?"}
    filled = codec.decode(ids_of(template, codec, **texts))
    both = "\n\n".join(worded(parse(part), texts) for part in (system, user))
    assert both.strip() in filled


TIMED = "{% for m in messages %}{{ m['content'] }}, {{ strftime_now('%-d %B %Y') }}. {% endfor %}"


@pytest.mark.parametrize("chat", [DATED, TIMED])
def test_the_day_is_in_the_literals_and_not_in_the_fingerprint(chat: str) -> None:
    def on(*day: int, source: str = "Do {task}.") -> Template:
        codec = byte_codec(chat).at(datetime(*day))
        return compile_template(codec, parse("You {role}."), parse(source))

    ninth, tenth, later = on(2026, 5, 9), on(2026, 5, 10), on(2027, 9, 30, 12, 30)
    assert len({made.literals for made in (ninth, tenth, later)}) == 3
    assert ninth.fingerprint == tenth.fingerprint == later.fingerprint
    assert ninth.names == tenth.names == ("role", "task")
    assert on(2026, 5, 9, source="Do {task}!").fingerprint != ninth.fingerprint
    assert "2026" in byte_codec().decode([i for literal in ninth.literals for i in literal])
