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

Senders = Mapping[str, Sequence[str]]
# Past this many nodes lanes move together, so that large graphs stay within a terminal.
ROOMY = 16


def levels(senders: Senders) -> list[list[str]]:
    """Node names by topological level: those of one level may run at once.

    Senders that are no nodes are ignored. What is left in a cycle forms the last level.
    """
    placed: list[list[str]] = []
    done: set[str] = set()
    left = list(senders)
    while left:
        level = [n for n in left if all(s in done or s not in senders for s in senders[n])] or left
        placed.append(level)
        done.update(level)
        left = [name for name in left if name not in done]
    return placed


def draw_lanes(senders: Senders, notes: Mapping[str, str] | None = None) -> str:
    """The drawing; `notes` are words behind a node (answer, exact)."""
    by_level = levels(senders)
    order = [name for level in by_level for name in level]
    step = 3 if len(order) <= ROOMY else 2
    column = {name: index * step for index, name in enumerate(order)}
    last = {s: index for index, name in enumerate(order) for s in senders[name] if s in column}
    width = max((len(name) for name in order), default=0)
    gutter = len(str(len(by_level)))
    lines: list[str] = []
    for depth, level in enumerate(by_level, 1):
        if depth > 1:
            row = order.index(level[0])
            between = _lanes(order[:row], column, last, row)
            lines.append(" " * (gutter + width + 4) + between)
        for name in level:
            number = str(depth) if name == level[0] else ""
            row = order.index(name)
            lanes = _lanes(order[:row], column, last, row, name, frozenset(senders[name]))
            note = (notes or {}).get(name)
            lines.append(
                f"{number:>{gutter}}  {name:<{width}}  {lanes}" + (f"  {note}" if note else "")
            )
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
