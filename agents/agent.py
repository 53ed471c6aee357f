"""An agent: a role text, a prompt template, and how its tokens are drawn and cleaned."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvcomm.errors import GraphError, TemplateError, UsageError
from kvcomm.message import strip_thinking
from kvcomm.prompt import Codec, Hole, Piece, Template, Text, compile_template, parse_template
from kvcomm.sampling import Sampling

NAME = re.compile(r"[A-Za-z_][\w-]*\Z")
RESERVED = frozenset({"task", "messages", "history"})
SHARED_SYSTEM = "You are one of several agents who work on a task together."


@dataclass(frozen=True)
class Sender:
    """A predecessor as an agent's template sees it: `own` marks the agent's earlier self."""

    node: str
    agent: str
    own: bool = False


@dataclass(frozen=True)
class Agent:
    """One participant of a graph.

    `prompt` is a template: `{task}` and other inputs of the run, `{NAME}` for the message of the
    predecessor NAME, `{messages}` for all predecessors not named elsewhere, `{history}` for the
    agent's own earlier messages (debates); `{{` and `}}` are braces. `layout` puts the role text
    `system` in the system turn ("role-first", as the paper does) or behind the prompt
    ("shared-first"), where agents that share task and messages also share an exact prefix.
    `post` turns generated text into the message (default: cut a `<think>` block). An `exact`
    agent is never given a realigned segment. `timeout_s` and `retries` hold for each call.
    """

    name: str
    system: str = ""
    prompt: str = "{task}\n\n{messages}"
    layout: Literal["role-first", "shared-first"] = "role-first"
    sampling: Sampling = field(default_factory=Sampling)
    post: Callable[[str], str] = strip_thinking
    exact: bool = False
    timeout_s: float | None = None
    retries: int = 0

    def __post_init__(self) -> None:
        if not NAME.match(self.name) or self.name in RESERVED:
            raise UsageError(
                f"agent name {self.name!r} cannot stand in a template: use letters, digits, `_` "
                f"and `-`, not one of {', '.join(sorted(RESERVED))}"
            )
        if self.layout not in ("role-first", "shared-first"):
            raise UsageError(
                f"layout {self.layout!r} is unknown: use 'role-first' or 'shared-first'"
            )
        if self.retries < 0 or (self.timeout_s is not None and self.timeout_s <= 0):
            raise UsageError(f"agent `{self.name}`: retries and timeout_s must be positive")
        for source in (self.system, self.prompt):
            try:
                parse_template(source)
            except TemplateError as error:
                raise TemplateError(f"agent `{self.name}`: {error}") from None

    def resolve(
        self, senders: Sequence[Sender], inputs: Sequence[str]
    ) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """System and user turn with every hole bound to an input or a predecessor node.

        Raises `GraphError` for a placeholder with no producer, and for a predecessor that no
        placeholder takes.
        """
        named = {
            piece.name
            for source in (self.system, self.prompt)
            for piece in parse_template(source)
            if isinstance(piece, Hole)
        }
        rest = [s for s in senders if not s.own and not named & {s.agent, s.node}]
        own = [s for s in senders if s.own]
        if rest and "messages" not in named:
            raise GraphError(
                f"agent `{self.name}` receives a message from `{rest[0].node}`, but its prompt has "
                f"no place for it: add `{{{rest[0].agent}}}` or `{{messages}}`"
            )
        if own and "history" not in named and "messages" in named:
            rest, own = [s for s in senders if s in rest or s.own], []
        elif own and not named & {"history", self.name}:
            raise GraphError(
                f"agent `{self.name}` receives its own earlier message, but its prompt has no "
                "place for it: add `{history}` or `{messages}`"
            )

        def bind(source: str) -> tuple[Piece, ...]:
            return _tidy(
                bound
                for piece in parse_template(source)
                for bound in (
                    [piece]
                    if isinstance(piece, Text)
                    else self._bind(piece.name, senders, inputs, rest, own)
                )
            )

        if self.layout == "shared-first":
            role = (Text("\n\n"), *bind(self.system)) if self.system else ()
            return (Text(SHARED_SYSTEM),), _tidy((*bind(self.prompt), *role))
        return bind(self.system), bind(self.prompt)

    def _bind(
        self,
        name: str,
        senders: Sequence[Sender],
        inputs: Sequence[str],
        rest: Sequence[Sender],
        own: Sequence[Sender],
    ) -> list[Piece]:
        if name == "messages":
            return _blocks([(f"{s.agent} wrote:", s.node) for s in rest])
        if name == "history":
            return _blocks([("You wrote before:", s.node) for s in own])
        found = [s.node for s in senders if name in (s.node, s.agent)]
        if found:
            return [Hole(found[-1])]
        if name in inputs:
            return [Hole(name)]
        known = [*inputs, *(s.agent for s in senders), "messages", "history"]
        raise GraphError(
            f"placeholder `{{{name}}}` of agent `{self.name}` has no producer: known here are "
            f"{', '.join(f'`{{{k}}}`' for k in dict.fromkeys(known))}; write `{{{{{name}}}}}` if "
            "you mean braces"
        )

    def template(self, codec: Codec, senders: Sequence[Sender], inputs: Sequence[str]) -> Template:
        """The agent's prompt at token level, for these predecessors."""
        return compile_template(codec, *self.resolve(senders, inputs))


def _blocks(entries: Sequence[tuple[str, str]]) -> list[Piece]:
    """Each message behind a line that says whose it is."""
    pieces: list[Piece] = []
    for index, (title, node) in enumerate(entries):
        pieces += [Text(("\n\n" if index else "") + title + "\n"), Hole(node)]
    return pieces


def _tidy(pieces: object) -> tuple[Piece, ...]:
    """Join neighbouring texts, and close the gap that an empty `{messages}` leaves behind."""
    joined: list[Piece] = []
    for piece in pieces:  # type: ignore[attr-defined]
        if isinstance(piece, Text) and joined and isinstance(joined[-1], Text):
            left, right = joined[-1].text, piece.text
            if left.endswith("\n\n"):
                right = right.lstrip("\n")
            joined[-1] = Text(left + right)
        else:
            joined.append(piece)
    return tuple(joined)
