"""Two runs of one graph side by side: what each call cost, and where the texts part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from kvcomm.errors import UsageError
from kvcomm.prompt import common_prefix
from kvcomm.trace.events import MessageSent
from kvcomm.trace.run import CallView, TraceRun
from kvcomm.trace.tables import facts, plain_table
from kvcomm.trace.text import listed, number, plain, shorten

AROUND = 32


@dataclass(frozen=True)
class Pair:
    """One node in both runs; None where a run has no finished call of it.

    `comparable`: the same model wrote both, so that the ids of their tokens mean the same.
    """

    node: str
    first: CallView | None
    second: CallView | None
    comparable: bool = True

    def to_json(self) -> dict[str, Any]:
        """Tokens, times, divergence where audited, and how far the texts are the same."""
        return {
            "node": self.node,
            "first": _numbers(self.first),
            "second": _numbers(self.second),
            "same_text": self.same_characters is None,
            "same_characters": self.same_characters,
            "same_tokens": self.same_tokens,
        }

    @property
    def same_characters(self) -> int | None:
        """Characters that both texts begin with; None when they are equal to the end."""
        one, other = (message.text if message else "" for message in self.messages)
        return None if one == other else common_prefix(one, other)

    @property
    def same_tokens(self) -> int | None:
        """Tokens that both messages begin with; None for equal texts, or where ids are not known.

        Older traces hold no ids.
        """
        one, other = (message.ids if message else [] for message in self.messages)
        known = self.comparable and one and other and self.same_characters is not None
        return common_prefix(one, other) if known else None

    @property
    def messages(self) -> list[MessageSent | None]:
        """What the node said in either run."""
        return [view.message if view else None for view in (self.first, self.second)]

    @property
    def parting(self) -> str:
        """Where the texts part, in words; empty for texts that do not."""
        if self.same_characters is None:
            return ""
        character = f"character {self.same_characters:,}"
        if self.same_tokens is None:
            return character
        return f"token {self.same_tokens:,} ({character})"


def pairs(first: TraceRun, second: TraceRun) -> list[Pair]:
    """The nodes of both runs. Raises `UsageError` for runs of graphs that share none."""
    found = [{v.node: v for v in run.last_calls() if v.call} for run in (first, second)]
    names = dict.fromkeys(info.name for run in (first, second) for info in run.started.nodes)
    if not set(found[0]) & set(found[1]):
        raise UsageError(
            f"these runs have no call in common: {listed(found[0])} and {listed(found[1])}"
        )
    comparable = first.started.model == second.started.model
    return [
        Pair(name, found[0].get(name), found[1].get(name), comparable)
        for name in names
        if name in found[0] or name in found[1]
    ]


def show_diff(first: TraceRun, second: TraceRun) -> RenderableType:
    """A table of both runs' calls, and the places where their texts part."""
    found = pairs(first, second)
    modes = (first.started.mode, second.started.mode)
    columns = (">computed", ">of prompt", ">TTFT s", ">shorter", ">divergence", ">parts at")
    table = plain_table("node", *columns)
    for pair in found:
        table.add_row(Text(pair.node), *_cells(pair))
    notes = [Text(line) for line in _notes(first, second)]
    parted = [line for pair in found for line in _parting(pair, modes)]
    return Group(
        Text(f"{_label(first)}  →  {_label(second)}", style="bold"),
        *notes,
        "",
        table,
        *(["", *parted] if parted else []),
    )


def _label(run: TraceRun) -> str:
    return f"{run.path.parent.name} ({run.started.mode})"


def _notes(first: TraceRun, second: TraceRun) -> list[str]:
    """What else is different, and would explain differences."""
    one, other = first.started, second.started
    notes = [
        f"other {name}: {getattr(one, name)} and {getattr(other, name)}"
        for name in ("model", "dtype", "device", "graph", "seed")
        if getattr(one, name) != getattr(other, name)
    ]
    if one.inputs != other.inputs:
        notes.append("other inputs")
    ends = [run.finished.totals.wall_s if run.finished else 0 for run in (first, second)]
    if all(ends):
        notes.append(f"end to end {number(ends[0])} s and {number(ends[1])} s")
    return notes


def _cells(pair: Pair) -> list[str]:
    sides = [_numbers(pair.first), _numbers(pair.second)]

    def both(name: str, write: Callable[[Any], str]) -> str:
        return " → ".join("–" if side is None else write(side[name]) for side in sides)

    first, second = (side["ttft_s"] if side else 0 for side in sides)
    audited = [s["divergence"] for s in sides if s and s["divergence"] is not None]
    return [
        both("computed_tokens", lambda v: f"{v:,}"),
        both("prompt_tokens", lambda v: f"{v:,}"),
        both("ttft_s", number),
        f"{first / second:.1f}×" if all(sides) and second else "–",
        f"{audited[-1]:.4f}" if audited else "",
        pair.parting.split(" (")[0] or "same",
    ]


def _parting(pair: Pair, modes: tuple[str, str]) -> list[RenderableType]:
    at = pair.same_characters
    if at is None or not (pair.first and pair.second):
        return []
    lines = []
    for mode, message in zip(modes, pair.messages, strict=True):
        text = plain(message.text) if message else ""
        before = "…" if at > AROUND else ""
        lines.append((f"  {mode}", before + shorten(text[max(0, at - AROUND) :], 120)))
    return [Text(f"{pair.node} parts at {pair.parting}", style="bold"), facts(lines, style="")]


def _numbers(view: CallView | None) -> dict[str, Any] | None:
    if view is None or view.call is None:
        return None
    return {
        "mode": view.call.mode,
        "gate": view.call.gate,
        "prompt_tokens": view.call.prompt_tokens,
        "computed_tokens": view.tokens["computed"],
        "output_tokens": view.call.output_tokens,
        "ttft_s": view.call.ttft_s,
        "decode_s": view.call.decode_s,
        "divergence": view.divergence,
    }
