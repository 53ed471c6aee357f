"""An agent: a role text, a prompt template, and how its tokens are drawn and cleaned."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

from kvcomm.errors import GraphError, TemplateError, UsageError
from kvcomm.message import strip_thinking
from kvcomm.prompt import (
    Codec,
    Exchange,
    Hole,
    Piece,
    Template,
    Text,
    compile_template,
    parse_template,
)
from kvcomm.sampling import Sampling

OnError = Literal["fail", "skip", "fallback"]
NAME = re.compile(r"[A-Za-z_][\w-]*\Z")
RESERVED = frozenset({"task", "messages", "history"})
SHARED_SYSTEM = "You are one of several agents who work on a task together."


def check_name(name: str) -> None:
    """Raise `UsageError` for a name that cannot stand in a template."""
    if not NAME.match(name) or name in RESERVED:
        raise UsageError(
            f"agent name {name!r} cannot stand in a template: use letters, digits, `_` "
            f"and `-`, not one of {', '.join(sorted(RESERVED))}"
        )


@dataclass(frozen=True)
class Sender:
    """A predecessor as an agent's template sees it.

    `own` marks the agent's earlier self, `output` one of a tool's several texts.
    """

    node: str
    agent: str
    own: bool = False
    output: str = ""

    @property
    def name(self) -> str:
        """What the text is called in templates."""
        return self.output or self.node

    @property
    def title(self) -> str:
        """The line that says whose text it is."""
        return f"{self.output}:" if self.output else f"{self.agent} wrote:"


@dataclass(frozen=True, kw_only=True)
class Care:
    """How long a call may take, how often it is tried again, and what is done in the end.

    `timeout_s` counts from a call's last input. A call that failed is tried again `retries` times,
    `backoff_s` later, then after twice as long, and so on. When it has failed for good, `on_error`
    says what happens: "fail" ends the run, "skip" tells the readers that there is no answer, and
    "fallback" hands them the text `fallback` instead. The answer of a graph cannot be skipped.
    """

    timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 0.2
    on_error: OnError = "fail"
    fallback: str = ""

    def check_care(self, who: str) -> None:
        """Raise `UsageError` for values out of range; `who` begins the message."""
        if self.retries < 0 or not 0 <= self.backoff_s < float("inf"):
            raise UsageError(f"{who}: retries and backoff_s must not be negative")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UsageError(f"{who}: timeout_s must be positive, or None for no limit")
        if self.on_error not in (known := get_args(OnError)):
            raise UsageError(f"{who}: on_error {self.on_error!r} is none of {', '.join(known)}")
        if (self.on_error == "fallback") != bool(self.fallback.strip()):
            raise UsageError(f'{who}: on_error="fallback" and a text `fallback` go together')

    def instead(self, node: str) -> str:
        """What a node's readers are told when it has failed for good."""
        return self.fallback if self.on_error == "fallback" else f"({node} gave no answer.)"


@dataclass(frozen=True)
class Agent(Care):
    """One participant of a graph.

    `prompt` is a template: `{task}` and other inputs of the run, `{NAME}` for the message of the
    predecessor NAME (a node or an agent), `{messages}` for all predecessors not named elsewhere,
    `{history}` for the agent's own earlier messages (debates); `{{` and `}}` are braces. `layout`
    puts the role text `system` in the system turn ("role-first", as the paper does) or behind the
    prompt ("shared-first"), where agents that share task and messages also share an exact prefix.
    `post` turns generated text into the message (default: cut a `<think>` block); it may be
    `async`. The answer continues `begins`, a literal behind the header of the assistant's turn
    ("Answer:"); the message holds it, unless `keep_begins` is off. Without `chat` there are no
    turns: the prompt is a plain completion of the role text and the prompt, as base models take it.
    An `exact` agent is never given a realigned segment. What happens when a call fails is said by
    the options of `Care`.
    """

    name: str
    system: str = ""
    prompt: str = "{task}\n\n{messages}"
    layout: Literal["role-first", "shared-first"] = "role-first"
    sampling: Sampling = field(default_factory=Sampling)
    post: Callable[[str], str | Awaitable[str]] = strip_thinking
    begins: str = ""
    keep_begins: bool = True
    chat: bool = True
    exact: bool = False

    def __new__(cls, *_: object, **options: object) -> Self:
        """Names what agents of other frameworks have, and these have elsewhere."""
        if not options.keys().isdisjoint(("tools", "functions", "tool_choice")):
            raise UsageError(
                "an agent has no tools of its own: put Tool(name, function) into the graph, and an "
                "edge from it to the agent; calls that the model chooses are not supported"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.layout not in ("role-first", "shared-first"):
            raise UsageError(
                f"layout {self.layout!r} is unknown: use 'role-first' or 'shared-first'"
            )
        if self.begins.endswith(" "):
            raise UsageError(
                f"agent `{self.name}`: begins {self.begins!r} ends with a space, which models "
                f"write with the word behind it: use {self.begins.rstrip(' ')!r}"
            )
        self.check_care(f"agent `{self.name}`")
        for source in (self.system, self.prompt):
            try:
                parse_template(source)
            except TemplateError as error:
                raise TemplateError(f"agent `{self.name}`: {error}") from None

    def resolve(
        self, senders: Sequence[Sender], inputs: Sequence[str]
    ) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """System and user turn with every hole bound to an input or a predecessor node.

        Raises `GraphError` for a placeholder with no producer or several, and for a predecessor
        that no placeholder takes. A name is a node's before it is an agent's; of an agent's own
        earlier messages its name means the latest.
        """
        system, prompt = parse_template(self.system), parse_template(self.prompt)
        named = dict.fromkeys(p.name for p in (*system, *prompt) if isinstance(p, Hole))
        bound = {
            name: self._producer(name, senders, inputs)
            for name in named
            if name not in ("messages", "history")
        }
        rest = [s for s in senders if s.name not in bound.values()]
        history = [s for s in rest if s.own and "history" in named]
        messages = [s for s in rest if s not in history]
        if messages and "messages" not in named:
            raise GraphError(self._no_place(messages[0]))
        blocks = {
            "messages": _blocks([(s.title, s.name) for s in messages]),
            "history": _blocks([("You wrote before:", s.name) for s in history]),
        }

        def bind(piece: Piece) -> Sequence[Piece]:
            if isinstance(piece, Text):
                return [piece]
            return blocks[piece.name] if piece.name in blocks else [Hole(bound[piece.name])]

        role, ask = [bind(piece) for piece in system], [bind(piece) for piece in prompt]
        if self.layout == "shared-first":
            behind = [[], [Text("\n\n")], *role] if role else []
            return (Text(SHARED_SYSTEM),), _tidy([*ask, *behind])
        return _tidy(role), _tidy(ask)

    def _producer(self, name: str, senders: Sequence[Sender], inputs: Sequence[str]) -> str:
        """The node or input that fills the placeholder `name`."""
        found = [s.name for s in senders if s.name == name]
        found = found or [s.name for s in senders if s.agent == name]
        if len(found) > 1 and name != self.name:
            nodes = ", ".join(f"`{{{node}}}`" for node in found)
            raise GraphError(
                f"placeholder `{{{name}}}` of agent `{self.name}` could be {len(found)} messages: "
                f"name a node ({nodes}), or use `{{messages}}`"
            )
        if found:
            return found[-1]
        if name in inputs:
            return name
        known = dict.fromkeys(
            [*inputs, *(s.output or s.agent for s in senders), "messages", "history"]
        )
        raise GraphError(
            f"placeholder `{{{name}}}` of agent `{self.name}` has no producer: known here are "
            f"{', '.join(f'`{{{k}}}`' for k in known)}. Write `{{{{{name}}}}}` if you mean braces; "
            f"a text of yours is an input: AgentGraph(..., inputs={(*inputs, name)!r})"
        )

    def _no_place(self, sender: Sender) -> str:
        what, place = f"a message from `{sender.node}`", sender.output or sender.agent
        if sender.own:
            what, place = "its own earlier message", "history"
        return (
            f"agent `{self.name}` receives {what}, but its prompt has no place for it: "
            f"add `{{{place}}}` or `{{messages}}`"
        )

    def template(
        self,
        codec: Codec,
        senders: Sequence[Sender],
        inputs: Sequence[str],
        earlier: Sequence[Exchange] = (),
    ) -> Template:
        """The agent's prompt at token level, for these predecessors.

        Of `earlier` turns the answers are the messages. All prompts behind earlier turns are one
        template for what is learned, whatever was said in them.
        """
        turns = self.resolve(senders, inputs)
        first = compile_template(codec, *turns, self.begins, chat=self.chat)
        if not earlier:
            return first
        lead = () if self.keep_begins else first.begins
        whole = [Exchange(turn.texts, (*lead, *turn.answer)) for turn in earlier]
        later = compile_template(codec, *turns, self.begins, chat=self.chat, earlier=whole)
        return replace(later, fingerprint=f"{first.fingerprint}later")


def _blocks(entries: Sequence[tuple[str, str]]) -> list[Piece]:
    """Each message behind a line that says whose it is."""
    pieces: list[Piece] = []
    for index, (title, node) in enumerate(entries):
        pieces += [Text(("\n\n" if index else "") + title + "\n"), Hole(node)]
    return pieces


def _tidy(parts: Iterable[Sequence[Piece]]) -> tuple[Piece, ...]:
    """One list of pieces, neighbouring texts joined.

    An empty part is a `{messages}` or `{history}` of nobody. The gap that it leaves is closed: of
    the newlines on both its sides the longer run stays, and none at the edge of the turn.
    """
    tidy: list[Piece] = []
    gap = False
    for part in parts:
        gap = gap or not part
        for piece in part:
            if isinstance(piece, Text):
                start, left = not tidy, ""
                if tidy and isinstance(tidy[-1], Text):
                    left = tidy[-1].text
                    tidy.pop()
                piece = Text(_close(left, piece.text, start) if gap else left + piece.text)
            if piece != Text(""):
                tidy.append(piece)
            gap = False
    if gap and tidy and isinstance(tidy[-1], Text):
        tidy[-1] = Text(tidy[-1].text.rstrip("\n"))
    return tuple(piece for piece in tidy if piece != Text(""))


def _close(left: str, right: str, start: bool) -> str:
    head, tail = left.rstrip("\n"), right.lstrip("\n")
    newlines = 0 if start else max(len(left) - len(head), len(right) - len(tail))
    return head + "\n" * newlines + tail
