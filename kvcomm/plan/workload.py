"""The work in a trace: prompts in pieces, answers, who hears whom, what prompts have in common."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvcomm.errors import UsageError
from kvcomm.trace.events import SegmentStep, ToolFinished
from kvcomm.trace.read import CallView, TraceRun

SPECIAL = re.compile(r"<\|[^<>|]+\|>")
LEARNING = ("auto", "kvcomm")


@dataclass(frozen=True)
class Piece:
    """A segment of a prompt. `sender` is the text it waits for, `computed` what the trace computed.

    Of a realigned one these are `leading` tokens, and others. A literal stands in the same place of
    every graph's prompt; other texts are each graph's own.
    """

    tokens: int
    computed: int
    literal: bool
    sender: str | None = None
    leading: int = 0


@dataclass(frozen=True)
class Call:
    """A node's call. `sampled` counts its answer with the token that stops it.

    `message` is what its readers get of the answer, at most `limit` tokens. `way` says what the
    trace did. The rest is work beside the prompt: tokens of base KV, of pilots (in whole layers)
    and of audits, and the seconds that realigning and learning took.
    """

    node: str
    pieces: tuple[Piece, ...]
    sampled: int
    message: int
    limit: int
    way: Literal["dense", "exact", "realigned"] = "dense"
    base: int = 0
    pilot: int = 0
    audit: int = 0
    realign_s: float = 0.0
    observe_s: float = 0.0

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(piece.tokens for piece in self.pieces)

    @property
    def realigned(self) -> int:
        """Tokens that the trace did not compute, where it realigned."""
        left = sum(piece.tokens - piece.computed for piece in self.pieces)
        return left if self.way == "realigned" else 0

    @property
    def opening(self) -> int:
        """Tokens before the first piece that is each graph's own."""
        lead = itertools.takewhile(lambda piece: piece.literal, self.pieces)
        return sum(piece.tokens for piece in lead)

    @property
    def senders(self) -> tuple[str, ...]:
        """The texts it waits for, in the order of the prompt."""
        found = (piece.sender for piece in self.pieces)
        return tuple(dict.fromkeys(name for name in found if name is not None))


@dataclass(frozen=True)
class ToolUse:
    """A tool: it waits for `senders`, takes `seconds`, and its `texts` have so many tokens."""

    node: str
    senders: tuple[str, ...]
    texts: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class Work:
    """A graph as its trace tells it. `shared` are leading tokens that two prompts have in common.

    `across` are those of them that prompts of two graphs share: what stands before any text of
    their own. `early` are texts of tools that hear no agent: their readers treat them as input.
    """

    calls: Mapping[str, Call]
    tools: Mapping[str, ToolUse]
    answer: str
    mode: str
    early: frozenset[str] = frozenset()
    shared: Mapping[tuple[str, str], int] = field(default_factory=dict)
    across: Mapping[tuple[str, str], int] = field(default_factory=dict)
    texts_known: bool = True

    @property
    def sampled(self) -> int:
        """Tokens of all answers of a graph."""
        return sum(call.sampled for call in self.calls.values())


def read_work(run: TraceRun) -> Work:
    """The work of a run that ended. Raises `UsageError` where a node has not answered."""
    views = {view.node: view for view in run.last_calls()}
    tools = {tool.node: tool for tool in run.tools}
    for info in run.started.nodes:
        view = views.get(info.name)
        if info.name not in tools and (view is None or view.call is None or not view.steps):
            raise UsageError(
                f"{run.path}: node `{info.name}` has not answered; give a run in which every "
                "node did (`kvcomm trace show` names what went wrong)"
            )
    said = set(views) | {name for tool in run.tools for name in tool.texts}
    senders = {info.name: info.senders for info in run.started.nodes}
    uses = {name: _use(tool, senders[name], tools) for name, tool in tools.items()}
    calls: dict[str, Call] = {}
    for info in run.started.nodes:
        if info.name in views and info.name not in tools:
            calls[info.name] = _call(run, views[info.name], said, calls)
    shared, across = _in_common(run, views, calls)
    known = all(run.text(step) is not None for view in views.values() for step in view.steps)
    return Work(
        calls,
        uses,
        run.started.answer_node,
        run.started.mode,
        _early(uses, tools),
        shared,
        across,
        known,
    )


def _use(tool: ToolFinished, heard: Sequence[str], tools: Mapping[str, ToolFinished]) -> ToolUse:
    texts = [name for node in heard for name in (tools[node].texts if node in tools else (node,))]
    return ToolUse(
        tool.node,
        tuple(dict.fromkeys(name for name in texts)),
        tool.tokens,
        tool.finished_at - tool.ready_at,
    )


def _early(uses: Mapping[str, ToolUse], tools: Mapping[str, ToolFinished]) -> frozenset[str]:
    """Texts of tools that hear no agent, directly or through other tools."""
    early: set[str] = set()
    for _ in uses:
        for use in uses.values():
            if all(name in early for name in use.senders):
                early |= set(use.texts)
    return frozenset(early)


def _call(run: TraceRun, view: CallView, said: set[str], before: Mapping[str, Call]) -> Call:
    done = view.call
    assert done is not None
    steps = sorted(view.steps, key=lambda step: step.index)
    pieces = tuple(
        Piece(
            step.tokens,
            step.computed,
            step.segment == "literal",
            step.name if step.segment == "placeholder" and step.name in said else None,
            next((end for start, end in step.positions[:1] if start == 0), 0),
        )
        for step in steps
    )
    sampled = done.output_tokens + (done.stop == "stop")
    realigned = any(step.realigned for step in steps)
    spent = done.phases
    return Call(
        view.node,
        pieces,
        sampled,
        view.message.tokens if view.message else done.output_tokens,
        _limit(run, view, pieces, sampled, before),
        "realigned" if realigned else "dense" if done.dense else "exact",
        done.base_tokens,
        round(done.pilot_tokens),
        sum(audit.tokens for audit in view.audits),
        sum(spent.get(name, 0.0) for name in ("offsets", "rotate", "fill")) if realigned else 0.0,
        spent.get("observe", 0.0),
    )


def _limit(
    run: TraceRun,
    view: CallView,
    pieces: Sequence[Piece],
    sampled: int,
    before: Mapping[str, Call],
) -> int:
    """The longest answer the node may give: what its row had room for, behind the prompt.

    A row that was opened ahead had room for the longest messages of its senders.
    """
    assert view.call is not None
    if view.call.stop == "length":
        return sampled
    capacity = next(
        (
            event.prompt_capacity
            for event in run.events
            if event.kind == "node" and (event.node, event.attempt) == (view.node, view.attempt)
        ),
        0,
    )
    room = capacity - sum(piece.tokens for piece in pieces)
    if view.tokens["ahead"]:
        for piece in pieces:
            if piece.sender is not None and piece.sender in before:
                room += piece.tokens - before[piece.sender].limit
    return max(room, sampled)


def _in_common(
    run: TraceRun, views: Mapping[str, CallView], calls: Mapping[str, Call]
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """Leading tokens that every two prompts share: within a graph, and across graphs."""
    steps = {name: sorted(views[name].steps, key=lambda step: step.index) for name in calls}
    texts = {name: [_spelled(run.text(step)) for step in found] for name, found in steps.items()}
    shared: dict[tuple[str, str], int] = {}
    across: dict[tuple[str, str], int] = {}
    for one, other in itertools.product(calls, repeat=2):
        if one == other:
            common = calls[one].prompt
        elif None in texts[one] or None in texts[other]:
            common = 0
        else:
            pairs = zip(*("".join(map(str, texts[name])) for name in (one, other)), strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            common = _tokens(steps[one], texts[one], same)
        shared[one, other] = common
        across[one, other] = min(common, calls[one].opening, calls[other].opening)
    return shared, across


def _spelled(text: str | None) -> str | None:
    """A text in which each special token is one character, so that it weighs as much as it is."""
    return None if text is None else SPECIAL.sub("\0", text)


def _tokens(steps: Sequence[SegmentStep], texts: Sequence[str | None], characters: int) -> int:
    """Whole tokens in the first `characters` of a prompt, spread evenly over each text."""
    tokens = 0
    for step, text in zip(steps, texts, strict=True):
        size = len(text or "")
        if characters < size:
            return tokens + step.tokens * characters // size
        tokens += step.tokens
        characters -= size
    return tokens


def modes_of(work: Work, wanted: str | None) -> list[str]:
    """The modes that a trace tells of, or those that are `wanted`, separated by commas.

    Dense and exact follow from any trace; what a learning mode realigns is known of its own only.
    """
    known = ["dense", "exact", *([work.mode] if work.mode in LEARNING else [])]
    names = known if wanted is None else [name.strip() for name in wanted.split(",")]
    for name in names:
        if name in LEARNING and name not in known:
            raise UsageError(
                f"a trace of {work.mode} does not tell what {name} would realign: run the graph "
                f"with --reuse {name}, and plan with that run"
            )
        if name not in known:
            raise UsageError(f"mode {name!r} is unknown: choose among {', '.join(known)}")
    return names
