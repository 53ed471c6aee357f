"""A graph in characters: one lane a node, exact for every DAG, and plain text.

    1  solver  ●
               │
    2  critic  ├─▶●
               │  │
    3  editor  └──┴─▶●  answer

A lane runs down from its node to the last node that hears it. `├ └ ┼ ┴` are messages, and a `│`
in the middle of a line is a lane that passes by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter

Senders = Mapping[str, Sequence[str]]
# Past this many nodes lanes move together, so that large graphs stay within a terminal.
ROOMY = 16
# As many nodes as a reader looks through.
MOST = 100


def levels(senders: Senders) -> list[list[str]]:
    """Node names by topological level: those of one level may run at once.

    Senders that are no nodes are ignored. What is left in a cycle forms the last level.
    """
    known = {name: {s for s in heard if s in senders} for name, heard in senders.items()}
    sorter = TopologicalSorter(known)
    with suppress(CycleError):
        sorter.prepare()
    place = {name: index for index, name in enumerate(senders)}
    placed: list[list[str]] = []
    while level := sorted(sorter.get_ready(), key=place.__getitem__):
        placed.append(level)
        sorter.done(*level)
        for name in level:
            del place[name]
    return [*placed, list(place)] if place else placed


def marked(answer: bool, exact: bool, tool: bool) -> str:
    """What a drawing says beside a node."""
    known = {"answer": answer, "exact": exact, "tool": tool}
    return ", ".join(word for word, holds in known.items() if holds)


def draw_lanes(senders: Senders, notes: Mapping[str, str] | None = None) -> str:
    """The drawing; `notes` are words behind a node (answer, exact). Of many nodes, the first."""
    by_level = levels(senders)
    everyone = [name for level in by_level for name in level]
    order = everyone[:MOST]
    step = 3 if len(order) <= ROOMY else 2
    row_of = {name: index for index, name in enumerate(order)}
    column = {name: index * step for index, name in enumerate(order)}
    # A lane whose reader is not drawn goes on to the end.
    last = {s: row_of.get(name, MOST) for name in everyone for s in senders[name] if s in column}
    width = max((len(name) for name in order), default=0)
    gutter = len(str(len(by_level)))
    lines: list[str] = []
    for depth, level in enumerate(by_level, 1):
        for name in level:
            if (row := row_of.get(name)) is None:
                continue
            first = name == level[0]
            if first and depth > 1:
                between = _lanes(order[:row], column, last, row)
                lines.append(" " * (gutter + width + 4) + between)
            number = str(depth) if first else ""
            lanes = _lanes(order[:row], column, last, row, name, frozenset(senders[name]))
            note = (notes or {}).get(name, "")
            lines.append(f"{number:>{gutter}}  {name:<{width}}  {lanes}  {note}")
    if len(senders) > MOST:
        lines.append(f"and {len(senders) - MOST:,} more, {len(by_level):,} levels in all")
    return "\n".join(line.rstrip() for line in lines)


def _lanes(
    above: Sequence[str],
    column: Mapping[str, int],
    last: Mapping[str, int],
    row: int,
    node: str | None = None,
    heard: frozenset[str] = frozenset(),
) -> str:
    """One line of lanes: those still open at `row`, joined into `node` where it hears them."""
    end = column[node] if node is not None else max((column[n] for n in above), default=0)
    cells = [" "] * (end + 1)
    first = min((column[name] for name in above if name in heard), default=end)
    for at in range(first, end):
        cells[at] = "─"
    for name in above:
        at = column[name]
        if name in heard:
            ends = last[name] == row
            cells[at] = ("└" if ends else "├") if at == first else ("┴" if ends else "┼")
        elif last.get(name, -1) >= row:
            cells[at] = "│"
    if node is not None:
        cells[end] = "●"
        if first < end:
            cells[end - 1] = "▶"
    return "".join(cells)
