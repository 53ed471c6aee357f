"""What a client says arrives as it was said, and what makes no sense is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.vllm.protocol import (
    KEY,
    OffsetLesson,
    OffsetQuestion,
    Piece,
    Publish,
    Reply,
    Request,
    salt_of,
)

NAMES = st.integers(0, 1 << 127).map("{:032x}".format)
MODELS = st.tuples(
    st.sampled_from(["linear", "anchors", "anchors:gamma=0.1,capacity=40"]),
    st.from_regex(r"[0-9a-f]{16}(-[0-9a-f]{8})?", fullmatch=True),
    st.sampled_from(["0", "task", "a text~read"]),
)
STRETCHES = st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda p: (p[0], p[0] + p[1]))
EMPTY = st.just("") | NAMES
PIECES = st.builds(
    lambda stretch, *rest: Piece(*stretch, *rest),
    STRETCHES,
    NAMES,
    st.integers(0, 9),
    st.none() | MODELS,
    st.floats(0, 2),
    EMPTY,
)
PUBLISH = st.builds(Publish, NAMES, st.integers(0, 9), st.none() | st.integers(10, 20))
LESSONS = st.builds(
    lambda model, name, stretch, *rest: OffsetLesson(model, name, *stretch, *rest),
    MODELS,
    NAMES,
    STRETCHES,
    st.integers(0, 9),
    EMPTY,
)
QUESTIONS = st.builds(OffsetQuestion, MODELS, NAMES, st.integers(0, 9), st.integers(0, 9))


def some(what: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(what, max_size=3).map(tuple)


@given(
    st.builds(
        Request,
        EMPTY,
        st.booleans(),
        some(PIECES),
        some(PUBLISH),
        some(LESSONS),
        some(QUESTIONS),
        some(NAMES),
        some(NAMES),
        st.booleans(),
    )
)
def test_a_request_arrives_as_it_was_said(request: Request) -> None:
    assert Request.from_json(request.to_json()) == request


def test_a_reply_arrives_as_it_was_said() -> None:
    told = (True, "yes", 3, 0.5)
    reply = Reply((1, 5), ("a",), ("b",), "no", (told, None), {"x y z": told}, {"block": 4})
    assert Reply.from_json(reply.to_json()) == reply
    assert Reply.from_json({"other": 1}) is None
    assert Reply.from_json(None) is None


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        {},
        {"version": 2},
        {"version": 1, "rows": ""},
        {"version": 1, "row": "../../etc"},
        {"version": 1, "keep": 1},
        {"version": 1, "pieces": {}},
        {"version": 1, "pieces": [{"start": 3, "stop": 3, "name": "0" * 32}]},
        {"version": 1, "pieces": [{"start": -3, "stop": 3, "name": "0" * 32}]},
        {"version": 1, "pieces": [{"start": 0, "stop": 3, "name": "0" * 32, "scale": 3}]},
        {"version": 1, "release": ["0" * 32] * 5000},
        {"version": 1, "publish": [None]},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError):
        Request.from_json({KEY: wrong})


@pytest.mark.parametrize(
    "model",
    [
        ("linear", "../up", "label"),
        ("linear", "a/b", "label"),
        ("linear", "a", "la/bel"),
        ("learned", "a", "label"),
        ("linear:capacity=1e9", "a", "label"),
        ("linear", "a"),
        "linear",
    ],
)
def test_a_model_names_no_other_file(model: Any) -> None:
    lesson = {"model": model, "name": "0" * 32, "start": 0, "stop": 1}
    with pytest.raises(ValueError):
        Request.from_json({KEY: {"version": 1, "lessons": [lesson]}})


def test_a_request_without_our_key_asks_nothing() -> None:
    assert Request.from_json(None) is None
    assert Request.from_json({"do_remote_prefill": True}) is None
    assert salt_of("a") != salt_of("b")
