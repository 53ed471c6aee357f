"""Two runs of one graph side by side: what each call cost, and where the texts part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from kvcomm.errors import UsageError
from kvcomm.prompt import common_prefix
from kvcomm.trace.run import CallView, TraceRun
from kvcomm.trace.tables import facts, plain_table
from kvcomm.trace.text import listed, number, plain, shorten

AROUND = 32
NUMBERS = {"mode", "gate", "prompt_tokens", "output_tokens", "ttft_s", "decode_s"}
COLUMNS = (">computed", ">of prompt", ">TTFT s", ">shorter", ">divergence", ">parts at")


@dataclass(frozen=True)
class Pair:
    """One node in both runs; None where a run has no finished call of it.

    `comparable`: the same model wrote both, so that the ids of their tokens mean the same.
    """

    node: str
    views: tuple[CallView | None, CallView | None]
    comparable: bool = True

    @property
    def texts(self) -> list[str]:
        """What the node said in either run."""
        return [view.message.text if view and view.message else "" for view in self.views]

    @property
    def same_characters(self) -> int | None:
        """Characters that both texts begin with; None when they are equal to the end."""
        one, other = self.texts
        return None if one == other else common_prefix(one, other)

    @property
    def same_tokens(self) -> int | None:
        """Tokens that both messages begin with; None for equal texts, or where ids are not known.

        Older traces hold no ids.
        """
        one, other = (view.message.ids if view and view.message else [] for view in self.views)
        known = self.comparable and one and other and self.same_characters is not None
        return common_prefix(one, other) if known else None

    @property
    def parting(self) -> str:
        """Where the texts part, in words; empty for texts that do not."""
        if self.same_characters is None:
            return ""
        character = f"character {self.same_characters:,}"
        return (
            character if self.same_tokens is None else f"token {self.same_tokens:,} ({character})"
        )

    def to_json(self) -> dict[str, Any]:
        """Tokens, times, divergence where audited, and how far the texts are the same."""
        return {
            "node": self.node,
            **dict(zip(("first", "second"), map(_numbers, self.views), strict=True)),
            "same_text": self.same_characters is None,
            "same_characters": self.same_characters,
            "same_tokens": self.same_tokens,
        }


def _numbers(view: CallView | None) -> dict[str, Any] | None:
    if view is None or view.call is None:
        return None
    computed = {"computed_tokens": view.tokens["computed"], "divergence": view.divergence}
    return {**view.call.model_dump(include=NUMBERS), **computed}


def pairs(first: TraceRun, second: TraceRun) -> list[Pair]:
    """The nodes of both runs. Raises `UsageError` for runs of graphs that share none."""
    one, other = ({v.node: v for v in r.last_calls() if v.call} for r in (first, second))
    if not one.keys() & other.keys():
        raise UsageError(f"these runs have no call in common: {listed(one)} and {listed(other)}")
    comparable = first.started.model == second.started.model
    names = dict.fromkeys(info.name for run in (first, second) for info in run.started.nodes)
    return [
        Pair(name, (one.get(name), other.get(name)), comparable)
        for name in names
        if name in one or name in other
    ]


def show_diff(first: TraceRun, second: TraceRun) -> RenderableType:
    """A table of both runs' calls, and the places where their texts part."""
    found = pairs(first, second)
    modes = (first.started.mode, second.started.mode)
    table = plain_table("node", *COLUMNS)
    for pair in found:
        table.add_row(Text(pair.node), *_cells(pair))
    title = "  →  ".join(f"{run.path.parent.name} ({run.started.mode})" for run in (first, second))
    parted = [line for pair in found for line in _parting(pair, modes)]
    return Group(
        Text(title, style="bold"),
        *map(Text, _notes(first, second)),
        "",
        table,
        *(["", *parted] if parted else []),
    )


def _notes(first: TraceRun, second: TraceRun) -> list[str]:
    """What else is different, and would explain differences."""
    one, other = first.started, second.started
    notes = [
        f"other {name}: {getattr(one, name)} and {getattr(other, name)}"
        for name in ("model", "dtype", "device", "graph", "seed")
        if getattr(one, name) != getattr(other, name)
    ]
    notes += ["other inputs"] if one.inputs != other.inputs else []
    ends = [run.finished.totals.wall_s if run.finished else 0 for run in (first, second)]
    return (
        [*notes, f"end to end {number(ends[0])} s and {number(ends[1])} s"] if all(ends) else notes
    )


def _cells(pair: Pair) -> list[str]:
    sides = [_numbers(view) for view in pair.views]

    def both(name: str, write: Callable[[Any], str] = "{:,}".format) -> str:
        return " → ".join("–" if side is None else write(side[name]) for side in sides)

    first, second = (side["ttft_s"] if side else 0 for side in sides)
    audited = [s["divergence"] for s in sides if s and s["divergence"] is not None]
    return [
        both("computed_tokens"),
        both("prompt_tokens"),
        both("ttft_s", number),
        f"{first / second:.1f}×" if all(sides) and second else "–",
        f"{audited[-1]:.4f}" if audited else "",
        pair.parting.split(" (")[0] or "same",
    ]


def _parting(pair: Pair, modes: tuple[str, str]) -> list[RenderableType]:
    at = pair.same_characters
    if at is None or not all(pair.views):
        return []
    begin, before = max(0, at - AROUND), "…" if at > AROUND else ""
    texts = (before + shorten(plain(text)[begin:], 120) for text in pair.texts)
    lines = zip((f"  {mode}" for mode in modes), texts, strict=True)
    return [Text(f"{pair.node} parts at {pair.parting}", style="bold"), facts(lines, style="")]
