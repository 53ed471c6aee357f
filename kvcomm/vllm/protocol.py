"""What a client and the connector say to each other, in the `kv_transfer_params` of requests.

Under the key `kvcomm` of a request stands what `Request.to_json` says, under that of the response
(where it is not streamed) what `Reply.to_json` says. Pure: client and server share this file.

Names and rows are secrets of 128 bits that the client makes: who knows a name can have its KV.

* A *name* is KV in the connector's store: so many tokens of one prompt, as they were computed, and
  where they stood. Nobody writes a name twice.
* A *row* is one realigned prompt. It grows by requests, each of them the prompt up to the end of
  a stretch that is computed, for one token that nobody reads; the last one is the prompt itself,
  and answers. All have the salt `salt_of(row)`: without it nothing is supplied, so realigned KV
  never gets into anybody else's prefixes.
* A request's *pieces* say what its prompt is filled with, from names. Supplied is what joins on
  what the server has of the row already, up to the first gap or the first name that is gone. vLLM
  computes all behind that. So where something is missing, a prompt is computed further than was
  planned, and `Reply.supplied` says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEY = "kvcomm"
VERSION = 1
# The extra argument of a request that has it say given tokens: see `kvcomm.vllm.forced`.
FORCE = "kvcomm_force"
# The most pieces, names and lessons of one request.
MOST = 4096
NAME = re.compile(r"[0-9a-f]{32}")
# Parts of an offset model's name. They name files and tensors, so none has a slash.
FAMILY = re.compile(r"(anchors|linear)(:[a-z]+=[0-9.]+(,[a-z]+=[0-9.]+)*)?")
TEMPLATE = re.compile(r"[0-9A-Za-z-]{1,128}")
LABEL = re.compile(r"[ -.0-~]{1,200}")
# How the salts of rows begin.
SALT = "kvcomm:"


def salt_of(row: str) -> str:
    """The salt of a row's requests."""
    return SALT + row


@dataclass(frozen=True)
class Piece:
    """The tokens `[start, stop)` of a prompt are filled with those of `name` from `origin` on.

    Keys are moved to their new place; those that stay where they were computed are copied as they
    are. `model` names an offset model, as family, template and label; what it predicts, times
    `scale`, is added. Without one, KV is only moved. With `behind` the piece is of the literal
    `name`, and the model says what follows the text of that name.
    """

    start: int
    stop: int
    name: str
    origin: int = 0
    model: tuple[str, str, str] | None = None
    scale: float = 1.0
    behind: str = ""


@dataclass(frozen=True)
class Publish:
    """The prompt's tokens `[start, stop)` become `name`. `stop` None: to the end of the answer.

    The last token that was sampled has no KV, so it is no part of that.
    """

    name: str
    start: int
    stop: int | None = None


@dataclass(frozen=True)
class OffsetLesson:
    """What a computed prompt teaches the offset model `model`, at its tokens `[start, stop)`.

    Base KV is `name` from `origin` on. `literal`, the name of base KV, stands from `stop` on:
    what follows the placeholder, for families that predict its offset, too.
    """

    model: tuple[str, str, str]
    name: str
    start: int
    stop: int
    origin: int = 0
    literal: str = ""


@dataclass(frozen=True)
class OffsetQuestion:
    """What the offset model `model` says of `tokens` of `name` from `origin` on: can it predict?"""

    model: tuple[str, str, str]
    name: str
    origin: int
    tokens: int


@dataclass(frozen=True)
class Request:
    """What is asked of the connector beside a request; all of it may be empty.

    `keep`: the row stays for another request. `release` lets go of names, `ends` of rows.
    `questions` are answered by `Reply.answers`, in order, when the request has run for three
    tokens. `query` asks what the connector is.
    """

    row: str = ""
    keep: bool = False
    pieces: tuple[Piece, ...] = ()
    publish: tuple[Publish, ...] = ()
    lessons: tuple[OffsetLesson, ...] = ()
    questions: tuple[OffsetQuestion, ...] = ()
    release: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    query: bool = False

    def to_json(self) -> dict[str, Any]:
        """The value of `kv_transfer_params`; what is empty is left out."""
        fields = {name: value for name, value in asdict(self).items() if value}
        return {KEY: {"version": VERSION, **fields}}

    @classmethod
    def from_json(cls, params: Mapping[str, Any] | None) -> Request | None:
        """What a request's `kv_transfer_params` ask for; None where they say nothing to us.

        Raises `ValueError`, in words for the client, for anything that is not as described here.
        """
        value = (params or {}).get(KEY)
        if value is None:
            return None
        if not isinstance(value, Mapping) or value.get("version") != VERSION:
            raise ValueError(f"{KEY} wants version {VERSION}")
        known = {"version", *cls.__dataclass_fields__}
        if unknown := set(value) - known:
            raise ValueError(f"{KEY} has no field {min(map(str, unknown))!r}")
        try:
            return cls(
                row=_name(value.get("row") or "", empty=True),
                keep=_flag(value.get("keep", False)),
                pieces=tuple(map(_piece, _many(value.get("pieces")))),
                publish=tuple(map(_publish, _many(value.get("publish")))),
                lessons=tuple(map(_lesson, _many(value.get("lessons")))),
                questions=tuple(map(_question, _many(value.get("questions")))),
                release=tuple(map(_name, _many(value.get("release")))),
                ends=tuple(map(_name, _many(value.get("ends")))),
                query=_flag(value.get("query", False)),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{KEY} is not as it should be: {error}") from None


@dataclass(frozen=True)
class Reply:
    """What the connector did for a request.

    `[start, stop)` of the prompt was `supplied`; before that vLLM had it. `missing` are names that
    were asked for and are gone, `published` those that are there now. `refused` says why nothing
    was done. `answers` are those to questions: whether the model can predict, why, its samples and
    its error; None for one that could not be told. `models` says the same of every model that has
    changed in the last two minutes (of all, where the connector was asked what it is), by family,
    template and label joined by blanks. `about` is what the connector is, where that was asked.
    """

    supplied: tuple[int, int] = (0, 0)
    missing: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    refused: str = ""
    answers: tuple[tuple[bool, str, int, float] | None, ...] = ()
    models: Mapping[str, tuple[bool, str, int, float]] | None = None
    about: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The value of `kv_transfer_params`; what is empty is left out."""
        fields = {name: value for name, value in asdict(self).items() if value}
        return {KEY: {"version": VERSION, "supplied": self.supplied, **fields}}

    @classmethod
    def from_json(cls, params: Mapping[str, Any] | None) -> Reply | None:
        """What a server answered; None for one without the connector, or with another version."""
        value = (params or {}).get(KEY)
        if not isinstance(value, Mapping) or value.get("version") != VERSION:
            return None
        return cls(
            supplied=tuple(value.get("supplied", (0, 0))),
            missing=tuple(value.get("missing", ())),
            published=tuple(value.get("published", ())),
            refused=str(value.get("refused", "")),
            answers=tuple(tuple(told) if told else None for told in value.get("answers", ())),
            models={name: tuple(told) for name, told in (value.get("models") or {}).items()},
            about=value.get("about"),
        )


def _many(value: Any) -> list[Any] | tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > MOST:
        raise ValueError(f"{KEY} takes lists of at most {MOST}")
    return value


def _name(value: Any, *, empty: bool = False) -> str:
    if empty and value == "":
        return ""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("names and rows are 32 hexadecimal digits")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no place in a prompt")
    return value


def _stretch(value: Mapping[str, Any]) -> tuple[int, int]:
    start, stop = _count(value["start"]), _count(value["stop"])
    if start >= stop:
        raise ValueError(f"[{start}, {stop}) is empty")
    return start, stop


def _model(value: Any) -> tuple[str, str, str]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError("a model is named by family, template and label")
    for part, form in zip(value, (FAMILY, TEMPLATE, LABEL), strict=True):
        if not isinstance(part, str) or not form.fullmatch(part):
            raise ValueError(f"{part!r} is no part of an offset model's name")
    return tuple(value)


def _piece(value: Mapping[str, Any]) -> Piece:
    model, scale = value.get("model"), value.get("scale", 1.0)
    if not isinstance(scale, int | float) or not 0 <= scale <= 2:
        raise ValueError(f"a scale of {scale!r}")
    return Piece(
        *_stretch(value),
        _name(value["name"]),
        _count(value.get("origin", 0)),
        _model(model) if model else None,
        float(scale),
        _name(value.get("behind") or "", empty=True),
    )


def _publish(value: Mapping[str, Any]) -> Publish:
    name = _name(value["name"])
    if value.get("stop") is None:
        return Publish(name, _count(value["start"]))
    return Publish(name, *_stretch(value))


def _lesson(value: Mapping[str, Any]) -> OffsetLesson:
    return OffsetLesson(
        _model(value["model"]),
        _name(value["name"]),
        *_stretch(value),
        _count(value.get("origin", 0)),
        _name(value.get("literal") or "", empty=True),
    )


def _question(value: Mapping[str, Any]) -> OffsetQuestion:
    return OffsetQuestion(
        _model(value["model"]),
        _name(value["name"]),
        _count(value["origin"]),
        _count(value["tokens"]),
    )
